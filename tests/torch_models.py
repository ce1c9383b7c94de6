"""Torch modules as people write them, with rows to try them on and the route by which each becomes a graph.

Every factory seeds torch, so that a module made twice is the same module.
"""

# mypy: disable-error-code="no-any-return, var-annotated, no-untyped-call, misc"
# Calls of modules are Any, and people leave it so.

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # as people import it
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Row = NDArray[Any] | tuple[NDArray[Any], ...] | dict[str, NDArray[Any]]
Route = Literal["translate", "export", "refuse", "translate equal"]
FEATURES, HIDDEN, WORDS = 5, 8, 30


@dataclass(frozen=True)
class TorchCase:
    """A module, rows of at least two lengths, and what becomes of it; `words` stand in the sentence of a refusal."""

    name: str
    make: Callable[[], nn.Module]
    rows: Callable[[], list[Row]]
    route: Route = "translate"
    words: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def floats(*lengths: int, features: int = FEATURES) -> Callable[[], list[Row]]:
    """Rows of so many steps."""

    def draw() -> list[Row]:
        random = np.random.default_rng(7)
        return [random.standard_normal((length, features)).astype(np.float32) for length in lengths]

    return draw


def words(*lengths: int) -> Callable[[], list[Row]]:
    """Rows of so many token ids, none of them 0."""

    def draw() -> list[Row]:
        random = np.random.default_rng(7)
        return [random.integers(1, WORDS, length) for length in lengths]

    return draw


def floats_and_static(*lengths: int) -> Callable[[], list[Row]]:
    """Rows of a sequence and of three facts that have no time."""

    def draw() -> list[Row]:
        random = np.random.default_rng(7)
        sequence = [random.standard_normal((length, FEATURES)).astype(np.float32) for length in lengths]
        return [(values, random.standard_normal(3).astype(np.float32)) for values in sequence]

    return draw


ROWS = floats(6, 9, 4)
IDS = words(6, 9, 4)


# ------------------------------------------------------------------------------------------------- the usual tutorials


class TutorialLSTM(nn.Module):
    """As in many a blog post: states of zeros made by hand, the last step of the last layer."""

    def __init__(self, input_size: int = FEATURES, hidden_size: int = HIDDEN, num_layers: int = 2, num_classes: int = 3) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        h0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size).to(x.device)
        c0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size).to(x.device)
        out, _ = self.lstm(x, (h0, c0))
        return self.fc(out[:, -1, :])


class LastHidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, num_layers=2, batch_first=True, dropout=0.2)
        self.fc = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, (h_n, _) = self.lstm(x)
        return self.fc(h_n[-1]).squeeze(-1)


class PackedClassifier(nn.Module):
    """Takes the lengths, as a loader's collate function gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6, padding_idx=0)
        self.lstm = nn.LSTM(6, HIDDEN, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * HIDDEN, 4)

    def forward(self, text: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(text), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        return self.fc(torch.cat((hidden[-2, :, :], hidden[-1, :, :]), dim=1))


class PackedTagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6)
        self.gru = nn.GRU(6, HIDDEN, num_layers=2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * HIDDEN, 4)

    def forward(self, text: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(text), lengths, batch_first=True, enforce_sorted=False)
        out, _ = self.gru(packed)
        unpacked, _ = pad_packed_sequence(out, batch_first=True, total_length=text.shape[1])
        return self.fc(unpacked)


class PackedPickLast(nn.Module):
    """The last step by the lengths, with two tensors as index."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        last = out[torch.arange(out.size(0)), lengths - 1]
        return self.fc(last)


class GatherLast(nn.Module):
    """The last step by the lengths, with gather."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        index = (lengths - 1).view(-1, 1, 1).expand(-1, 1, out.size(2))
        return self.fc(out.gather(1, index).squeeze(1))


class BiLSTMTagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(WORDS, 6)
        self.lstm = nn.LSTM(6, HIDDEN, bidirectional=True, batch_first=True)
        self.hidden2tag = nn.Linear(2 * HIDDEN, 5)

    def forward(self, sentence: Tensor) -> Tensor:
        embeds = self.word_embeddings(sentence)
        lstm_out, _ = self.lstm(embeds)
        return F.log_softmax(self.hidden2tag(lstm_out), dim=-1)


class BiLSTMConcat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, 2, bidirectional=True, batch_first=True, dropout=0.1)
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(2 * HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, (h_n, _) = self.lstm(x)
        hidden = self.dropout(torch.cat((h_n[-2], h_n[-1]), dim=1))
        return torch.sigmoid(self.fc(hidden))


class BiLSTMBothEnds(nn.Module):
    """Forward half of the last step, backward half of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(2 * HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        forward, backward = out[:, -1, :HIDDEN], out[:, 0, HIDDEN:]
        return self.fc(torch.cat([forward, backward], 1))


class StatesByLayer(nn.Module):
    """h_n viewed as layers and directions, as the documentation says it may be."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.GRU(FEATURES, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(2 * HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, h_n = self.lstm(x)
        h_n = h_n.view(2, 2, x.shape[0], HIDDEN)[-1]
        return self.fc(h_n.transpose(0, 1).reshape(x.shape[0], -1))


class TimeMajor(nn.Module):
    """batch_first=False, the default, and steps first throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, 2)
        self.fc = nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(out[-1])


class PermutedInside(nn.Module):
    """Rows first outside, steps first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(FEATURES, HIDDEN, nonlinearity="relu")
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, hidden = self.rnn(x.permute(1, 0, 2))
        return self.fc(hidden.squeeze(0))


class PlainRNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(FEATURES, HIDDEN, num_layers=2, nonlinearity="relu", batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[0])


class ProjectedLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, 2, batch_first=True, proj_size=3, bidirectional=True)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, (h_n, c_n) = self.lstm(x)
        return self.fc(out[:, -1]) + h_n.sum((0, 2)).unsqueeze(1) + c_n[-1].mean(-1, keepdim=True)


class SelectItem(nn.Module):
    """So that a recurrent layer fits into nn.Sequential."""

    def __init__(self, item: int) -> None:
        super().__init__()
        self.item = item

    def forward(self, inputs: Any) -> Any:
        return inputs[self.item]


class LastStep(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


def sequential() -> nn.Module:
    lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
    return nn.Sequential(lstm, SelectItem(0), nn.Dropout(0.2), LastStep(), nn.Linear(HIDDEN, 4), nn.ReLU(), nn.Linear(4, 1))


# ------------------------------------------------------------------------------------------------------------ pooling


class EmbeddingMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6)
        self.lstm = nn.LSTM(6, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(self.embedding(x))
        return torch.softmax(self.fc(out.mean(dim=1)), dim=1)


class MaxOverTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        best, _ = torch.max(out, 1)
        return self.fc(best)


class MeanMaxConcat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(4 * HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x)
        average = F.adaptive_avg_pool1d(out.permute(0, 2, 1), 1).view(x.size(0), -1)
        best = F.adaptive_max_pool1d(out.permute(0, 2, 1), 1).view(x.size(0), -1)
        return self.fc(torch.cat([average, best], dim=-1))


class StatisticsPooling(nn.Module):
    """Mean and standard deviation over time, as in speaker embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(2 * HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(torch.cat([out.mean(1), out.std(1)], 1))


class MaskedMean(nn.Module):
    """A mean by hand over the steps that the lengths say are there."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        out, _ = self.gru(x)
        mask = torch.arange(x.size(1), device=x.device)[None, :] < lengths[:, None]
        out = out * mask.unsqueeze(-1).float()
        return self.fc(out.sum(1) / lengths.unsqueeze(1).clamp(min=1))


class SumOverSize(nn.Module):
    """A mean by hand with the size of the time axis."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(out.sum(dim=1) / x.size(1))


# ---------------------------------------------------------------------------------------------------------- attention


class AdditiveAttention(nn.Module):
    """Bahdanau's, over the GRU's own outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.w1 = nn.Linear(HIDDEN, HIDDEN)
        self.w2 = nn.Linear(HIDDEN, HIDDEN)
        self.v = nn.Linear(HIDDEN, 1, bias=False)
        self.fc = nn.Linear(2 * HIDDEN, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, hidden = self.gru(x)
        query = hidden[-1].unsqueeze(1)
        scores = self.v(torch.tanh(self.w1(query) + self.w2(out))).squeeze(2)
        weights = F.softmax(scores, dim=1)
        context = torch.bmm(weights.unsqueeze(1), out).squeeze(1)
        return self.fc(torch.cat([context, hidden[-1]], dim=1)), weights


class RepeatedAttention(nn.Module):
    """The hidden state repeated over the steps, as in the seq2seq tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.attn = nn.Linear(2 * HIDDEN, HIDDEN)
        self.v = nn.Parameter(torch.rand(HIDDEN))
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, hidden = self.gru(x)
        src_len = out.shape[1]
        repeated = hidden.permute(1, 0, 2).repeat(1, src_len, 1)
        energy = torch.tanh(self.attn(torch.cat((repeated, out), dim=2)))
        attention = torch.matmul(energy, self.v)
        weights = torch.softmax(attention, dim=1)
        return self.fc(torch.einsum("bt,bth->bh", weights, out))


class DotAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, (h_n, _) = self.lstm(x)
        final = h_n.squeeze(0)
        scores = torch.bmm(out, final.unsqueeze(2)).squeeze(2)
        weights = F.softmax(scores, 1)
        context = torch.bmm(out.transpose(1, 2), weights.unsqueeze(2)).squeeze(2)
        return self.fc(context)


class SoftmaxOverTime(nn.Module):
    """A score for every step, a softmax over them and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, bidirectional=True, batch_first=True)
        self.attention = nn.Sequential(nn.Linear(2 * HIDDEN, 4), nn.Tanh(), nn.Linear(4, 1))
        self.fc = nn.Linear(2 * HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        weights = torch.softmax(self.attention(out), dim=1)
        return self.fc((weights * out).sum(dim=1))


class SelfAttention(nn.Module):
    """Multi-head attention behind an LSTM, with a residual and LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.mha = nn.MultiheadAttention(HIDDEN, 2, batch_first=True)
        self.norm = nn.LayerNorm(HIDDEN)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        attended, _ = self.mha(out, out, out)
        return self.fc(self.norm(out + attended).mean(1))


class AttentionWeights(SelfAttention):
    """What each step reads of each other, beside the answer: an output of steps by steps."""

    def forward(self, x: Tensor) -> Any:
        out, _ = self.lstm(x)
        attended, weights = self.mha(out, out, out)
        return {"answer": self.fc(self.norm(out + attended)), "weights": weights}


class ScaledSelfAttention(nn.Module):
    """Queries, keys and values by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.q, self.k, self.v = nn.Linear(HIDDEN, 4), nn.Linear(HIDDEN, 4), nn.Linear(HIDDEN, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x)
        q, k, v = self.q(out), self.k(out), self.v(out)
        scores = q @ k.transpose(-2, -1) / (k.size(-1) ** 0.5)
        attended = scores.softmax(dim=-1) @ v
        return self.fc(attended[:, -1])


# ------------------------------------------------------------------------------------------------------- with others


class CnnLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(FEATURES, 6, kernel_size=3, padding=1)
        self.pool = nn.MaxPool1d(2)
        self.lstm = nn.LSTM(6, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv(x.permute(0, 2, 1))))
        out, _ = self.lstm(x.permute(0, 2, 1))
        return self.fc(out[:, -1, :])


class ConvGru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(FEATURES, 6, kernel_size=5, padding="same")
        self.conv2 = nn.Conv1d(6, 6, kernel_size=3, stride=2, padding=1, dilation=1)
        self.gru = nn.GRU(6, HIDDEN, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.conv1(x.transpose(1, 2)))
        x = F.leaky_relu(self.conv2(x), 0.1)
        _, hidden = self.gru(x.transpose(1, 2))
        return self.fc(torch.cat([hidden[0], hidden[1]], -1))


class NormBetween(nn.Module):
    """BatchNorm1d over the features, after a transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES)
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.norm2 = nn.BatchNorm1d(HIDDEN)
        self.fc = nn.Linear(HIDDEN, 2)
        for norm in (self.norm, self.norm2):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        out, _ = self.lstm(x)
        return self.fc(F.relu(self.norm2(out[:, -1])))


class StackedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(FEATURES, HIDDEN)
        self.layers = nn.ModuleList([nn.LSTM(HIDDEN, HIDDEN, batch_first=True) for _ in range(3)])
        self.norms = nn.ModuleList([nn.LayerNorm(HIDDEN) for _ in range(3)])
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        for lstm, norm in zip(self.layers, self.norms, strict=True):
            out, _ = lstm(x)
            x = norm(x + self.dropout(out))
        return self.fc(x[:, -1])


class LSTMCellLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(FEATURES, HIDDEN)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), HIDDEN, device=x.device)
        c = torch.zeros(x.size(0), HIDDEN, device=x.device)
        for t in range(x.size(1)):
            h, c = self.cell(x[:, t, :], (h, c))
        return self.fc(h)


class GRUCellLoop(nn.Module):
    """Two cells one above the other, all steps out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRUCell(FEATURES, HIDDEN)
        self.second = nn.GRUCell(HIDDEN, HIDDEN)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        one = x.new_zeros(x.shape[0], HIDDEN)
        two = x.new_zeros(x.shape[0], HIDDEN)
        outputs = []
        for step in x.unbind(1):
            one = self.first(step, one)
            two = self.second(F.dropout(one, 0.2, self.training), two)
            outputs.append(self.fc(two))
        return torch.stack(outputs, dim=1)


class BackwardLoop(nn.Module):
    """A cell read forward and one read backward, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = nn.LSTMCell(FEATURES, HIDDEN)
        self.back = nn.LSTMCell(FEATURES, HIDDEN)
        self.fc = nn.Linear(2 * HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        h = c = x.new_zeros(batch, HIDDEN)
        ahead = []
        for t in range(steps):
            h, c = self.ahead(x[:, t], (h, c))
            ahead.append(h)
        h = c = x.new_zeros(batch, HIDDEN)
        back = []
        for t in reversed(range(steps)):
            h, c = self.back(x[:, t], (h, c))
            back.insert(0, h)
        return self.fc(torch.cat([torch.stack(ahead, 1), torch.stack(back, 1)], dim=2))


class OwnCell(nn.Module):
    """An LSTM written from its equations, one weight for each gate."""

    def __init__(self) -> None:
        super().__init__()
        self.w_x = nn.Parameter(torch.randn(FEATURES, 4 * HIDDEN) * 0.3)
        self.w_h = nn.Parameter(torch.randn(HIDDEN, 4 * HIDDEN) * 0.3)
        self.bias = nn.Parameter(torch.zeros(4 * HIDDEN))
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        batch_size, seq_len, _ = x.size()
        hidden_seq = []
        h_t, c_t = torch.zeros(batch_size, HIDDEN), torch.zeros(batch_size, HIDDEN)
        for t in range(seq_len):
            gates = x[:, t, :] @ self.w_x + h_t @ self.w_h + self.bias
            i_t = torch.sigmoid(gates[:, :HIDDEN])
            f_t = torch.sigmoid(gates[:, HIDDEN : HIDDEN * 2])
            g_t = torch.tanh(gates[:, HIDDEN * 2 : HIDDEN * 3])
            o_t = torch.sigmoid(gates[:, HIDDEN * 3 :])
            c_t = f_t * c_t + i_t * g_t
            h_t = o_t * torch.tanh(c_t)
            hidden_seq.append(h_t.unsqueeze(0))
        sequence = torch.cat(hidden_seq, dim=0).transpose(0, 1).contiguous()
        return self.fc(sequence[:, -1] + sequence.mean(1))


class MultiInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.static = nn.Linear(3, 4)
        self.fc = nn.Linear(HIDDEN + 4, 2)

    def forward(self, sequence: Tensor, static: Tensor) -> Tensor:
        out, _ = self.lstm(sequence)
        return self.fc(torch.cat([out[:, -1], torch.relu(self.static(static))], dim=1))


class StaticEveryStep(nn.Module):
    """The facts beside the features of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES + 3, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, sequence: Tensor, static: Tensor) -> Tensor:
        repeated = static.unsqueeze(1).expand(-1, sequence.size(1), -1)
        out, _ = self.lstm(torch.cat([sequence, repeated], dim=-1))
        return self.fc(out)


class LightningLSTM(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0][:, -1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def torchscript() -> nn.Module:
    scripted: nn.Module = torch.jit.script(BiLSTMConcat().eval())
    return scripted


class Autoencoder(nn.Module):
    """The code repeated over the steps, and read back into a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.decoder = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.output = nn.Linear(HIDDEN, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        seq_len = x.shape[1]
        _, (hidden, _) = self.encoder(x)
        repeated = hidden[-1].unsqueeze(1).repeat(1, seq_len, 1)
        decoded, _ = self.decoder(repeated)
        return self.output(decoded)


class VariationalEncoder(nn.Module):
    """Mean and log-variance; what is random happens in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.mu = nn.Linear(HIDDEN, 3)
        self.logvar = nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        _, hidden = self.gru(x)
        mu, logvar = self.mu(hidden[-1]), self.logvar(hidden[-1])
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar) if self.training else mu
        return {"z": z, "mu": mu, "logvar": logvar}


class SeqToSeqEncoder(nn.Module):
    """What a decoder starts from."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6)
        self.rnn = nn.GRU(6, HIDDEN, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * HIDDEN, HIDDEN)

    def forward(self, src: Tensor) -> tuple[Tensor, Tensor]:
        outputs, hidden = self.rnn(self.embedding(src))
        hidden = torch.tanh(self.fc(torch.cat((hidden[-2, :, :], hidden[-1, :, :]), dim=1)))
        return outputs, hidden


class SeqToSeqForecaster(nn.Module):
    """An encoder, and a decoder that reads what it forecast itself, for a fixed number of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.decoder = nn.LSTM(1, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        step = x[:, -1:, :1]
        outputs = []
        for _ in range(4):
            out, state = self.decoder(step, state)
            step = self.fc(out)
            outputs.append(step)
        return torch.cat(outputs, dim=1)


class CharModel(nn.Module):
    """A language model over characters: state in, state out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6)
        self.lstm = nn.LSTM(6, HIDDEN, num_layers=2, batch_first=True)
        self.fc = nn.Linear(HIDDEN, WORDS)

    def forward(self, x: Tensor, hidden: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        out, hidden = self.lstm(self.embedding(x), hidden)
        return self.fc(out.reshape(-1, HIDDEN)).view(x.size(0), -1, WORDS), hidden


class StatefulGRU(nn.Module):
    """One tensor of state, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor, h0: Tensor) -> dict[str, Tensor]:
        out, h_n = self.gru(x, h0)
        return {"output": self.fc(out[:, -1]), "h_n": h_n}


# --------------------------------------------------------------------------------------------------------- other heads


class QuantileForecaster(nn.Module):
    def __init__(self, horizon: int = 6, quantiles: int = 3) -> None:
        super().__init__()
        self.horizon, self.quantiles = horizon, quantiles
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, horizon * quantiles)

    def forward(self, x: Tensor) -> Tensor:
        B, _, _ = x.shape  # noqa: N806  as people write it
        _, (h, _) = self.lstm(x)
        return self.head(h[-1]).view(B, self.horizon, self.quantiles)


class MinMaxForecaster(nn.Module):
    """Scaled inside, by the smallest and largest values of the training part."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.linspace(-3, -1, FEATURES))
        self.register_buffer("high", torch.linspace(1, 4, FEATURES))
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.low) / (self.high - self.low)
        out, _ = self.gru(x)
        return self.fc(out[:, -1]) * (self.high[0] - self.low[0]) + self.low[0]


class WindowNormalised(nn.Module):
    """Each row scaled by its own mean and deviation, and scaled back."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=1, keepdim=True)
        std = x.std(dim=1, keepdim=True, unbiased=False) + 1e-5
        out, _ = self.lstm((x - mean) / std)
        return self.fc(out[:, -1]) * std.squeeze(1) + mean.squeeze(1)


class TimeDistributed(nn.Module):
    """All steps of all rows through one Linear, as one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        batch, steps, hidden = out.shape
        flat = self.fc(out.contiguous().view(batch * steps, hidden))
        return flat.view(batch, steps, 3)


class GatedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.value = nn.Linear(HIDDEN, 4)
        self.gate = nn.Linear(HIDDEN, 4)
        self.output = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.lstm(x)[0][:, -1]
        gated = self.value(out) * torch.sigmoid(self.gate(out))
        return F.glu(self.output(gated), dim=-1)


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.transform = nn.Linear(HIDDEN, HIDDEN)
        self.carry = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x)
        gate = torch.sigmoid(self.carry(out))
        return (gate * F.relu(self.transform(out)) + (1 - gate) * out)[:, -1]


class SkipWithWindow(nn.Module):
    """LSTM beside the last three values: a direct path, as in LSTNet."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 1)
        self.ar = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(out[:, -1]) + self.ar(x[:, -3:, 0])


class Differenced(nn.Module):
    """Steps as differences, the last value added again."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        steps = x[:, 1:] - x[:, :-1]
        out, _ = self.gru(steps)
        return self.fc(out[:, -1]) + x[:, -1]


class PositionalGRU(nn.Module):
    """A table of positions, as long as the sequence."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(1, 50, FEATURES))
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x + self.table[:, : x.size(1)])
        return self.fc(out.amax(dim=1))


class ReversedCopy(nn.Module):
    """The sequence and its mirror image, each read by a GRU of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.back = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(2 * HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        one, _ = self.ahead(x)
        two, _ = self.back(torch.flip(x, dims=[1]))
        return self.fc(torch.cat([one, two.flip(1)], -1))


class LSTMWithToken(nn.Module):
    """A learned first step before the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, FEATURES))
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.expand(x.size(0), -1, -1)
        out, _ = self.lstm(torch.cat([token, x], dim=1))
        return self.fc(out[:, -1])


class LearnedState(nn.Module):
    """The first state is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.h0 = nn.Parameter(torch.randn(1, 1, HIDDEN))
        self.c0 = nn.Parameter(torch.randn(1, 1, HIDDEN))
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size(0)
        out, _ = self.lstm(x, (self.h0.repeat(1, batch, 1), self.c0.expand(-1, batch, -1).contiguous()))
        return self.fc(out[:, -1])


class Output(NamedTuple):
    logits: Tensor
    states: Tensor


class NamedOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Output:
        out, _ = self.lstm(x)
        return Output(self.fc(out[:, -1]), out)


def weight_norm_lstm() -> nn.Module:
    net = TutorialLSTM(num_layers=1)
    net.fc = nn.utils.parametrizations.weight_norm(net.fc)
    return net


class WeightNormHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(HIDDEN, 2))
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Linear(HIDDEN, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.elu(self.conv(self.lstm(x)[0])).mean(1))


class ResidualBlock(nn.Module):
    """A causal convolution as in a TCN: padded at the front, cut at the end."""

    def __init__(self, channels_in: int, channels: int, dilation: int) -> None:
        super().__init__()
        self.chomp = 2 * dilation
        self.conv = nn.Conv1d(channels_in, channels, 3, padding=2 * dilation, dilation=dilation)
        self.down = nn.Conv1d(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.relu(self.conv(x)[:, :, : -self.chomp]) + self.down(x))


class TcnGru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(ResidualBlock(FEATURES, 6, 1), ResidualBlock(6, 6, 2))
        self.gru = nn.GRU(6, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x.transpose(1, 2)).transpose(1, 2)
        return self.fc(self.gru(x)[0][:, -1])


class CheckedLSTM(nn.Module):
    """Asserts and branches on shapes, which are the same for all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            x = x.unsqueeze(0)
        assert x.shape[-1] == FEATURES, f"expected {FEATURES} features, got {tuple(x.shape)}"
        assert not torch.isnan(x).any()
        out, _ = self.lstm(x)
        return self.fc(out[:, -1, ...]).flatten(1)


class TransformerBehind(nn.Module):
    """An encoder layer between two recurrent ones."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(HIDDEN, 2, 16, batch_first=True, activation="gelu")
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x)
        return self.fc(self.encoder(out)[:, -1])


# ------------------------------------------------------------------------------------- what the translator has no rule for


class SpectrogramCrnn(nn.Module):
    """Two-dimensional convolutions over time and features, then a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=(1, 0))
        self.gru = nn.GRU(3 * (FEATURES - 2), HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x.unsqueeze(1)))
        out, _ = self.gru(x.permute(0, 2, 1, 3).flatten(2))
        return self.fc(out[:, -1])


class CumulativeProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return torch.cumprod(torch.sigmoid(self.fc(out)), dim=-1)


class AdaptivePooling(nn.Module):
    """The steps pooled to three, whose bounds follow from the length."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.conv = nn.ConvTranspose1d(HIDDEN, HIDDEN, 3)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(self.conv(out.transpose(1, 2)).mean(2))


class RolledSteps(nn.Module):
    """Each step beside the one before it, the first beside the last."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2 * FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(torch.cat([x, torch.roll(x, 1, dims=1)], 2))
        return self.fc(out[:, -1])


class MiddleStep(nn.Module):
    """The step in the middle: where it is does not follow from the length by addition."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(out[:, x.size(1) // 2])


class UpsampledFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2 * FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.fc(out[:, -1])


class Triangular(nn.Module):
    """Steps weighted by their place, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x)
        weights = torch.linspace(0, 1, out.size(1)).unsqueeze(0).unsqueeze(-1)
        return self.fc((out * weights).sum(1))


class SquareRootScale(nn.Module):
    """Divided by the square root of the number of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(out.sum(1) / x.size(1) ** 0.5)


class LocalResponse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.norm = nn.LocalResponseNorm(3)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(self.norm(out.transpose(1, 2)).transpose(1, 2)[:, -1])


class PairDistances(nn.Module):
    """Distances of all steps from learned prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.prototypes = nn.Parameter(torch.randn(1, 4, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return torch.cdist(out[:, -1:], self.prototypes.expand(x.size(0), -1, -1)).squeeze(1)


class Windows(nn.Module):
    """Overlapping windows of the features by unfold."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(9, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x.unfold(2, 3, 1).flatten(2))
        return self.fc(out[:, -1])


def case(name: str, make: Callable[[], nn.Module], rows: Callable[[], list[Row]] = ROWS, **more: Any) -> TorchCase:
    """A case whose factory is seeded and whose module answers."""

    def seeded() -> nn.Module:
        torch.manual_seed(3)
        return make().eval()

    return TorchCase(name, seeded, rows, **more)


_WITH_LENGTHS = {"lengths": "lengths"}


class StridedFrames(nn.Module):
    """An acoustic encoder: half as many frames as steps, each with scores for CTC."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(FEATURES, HIDDEN, 3, stride=2, padding=1)
        self.gru = nn.GRU(HIDDEN, HIDDEN, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * HIDDEN, 6)

    def forward(self, x: Tensor) -> Tensor:
        frames = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        return F.log_softmax(self.fc(self.gru(frames)[0]), dim=-1)


# ------------------------------------------------------------------------------------------------- one row at a time


class OneRowState(nn.Module):
    """A state for one row, as where a tutorial knows of no batches."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, num_layers=2, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        h0, c0 = torch.zeros(2, 1, HIDDEN), torch.zeros(2, 1, HIDDEN)
        out, _ = self.lstm(x, (h0, c0))
        return self.fc(out[:, -1])


class OneRowTagger(nn.Module):
    """The sentence tagger of many a tutorial: the batch axis is taken away, and every word gets its scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6)
        self.lstm = nn.LSTM(6, HIDDEN)
        self.tags = nn.Linear(HIDDEN, 4)

    def forward(self, sentence: Tensor) -> Any:
        embedded = self.embedding(sentence.squeeze(0))
        out, (h_n, _) = self.lstm(embedded.view(embedded.size(0), 1, -1))
        scores = F.log_softmax(self.tags(out.view(embedded.size(0), -1)), dim=1)
        return {"scores": scores, "summary": h_n[-1]}


class OneRowNorm(nn.Module):
    """Statistics of the whole batch, which is the row alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru((x - x.mean()) / x.std())[0].mean(1)


_ONE_ROW = {"batching": "none"}
ONE_ROW: tuple[TorchCase, ...] = (
    case("one-row-state", OneRowState, route="export", options=_ONE_ROW),
    case("one-row-tagger", OneRowTagger, IDS, route="export", options=_ONE_ROW),
    case("one-row-norm", OneRowNorm, route="export", options=_ONE_ROW),
)
"""Modules that keep the contract only where they are run on one row at a time."""

CASES: tuple[TorchCase, ...] = (
    case("tutorial-lstm", TutorialLSTM),
    case("last-hidden", LastHidden),
    case("packed-classifier", PackedClassifier, IDS, options=_WITH_LENGTHS),
    case("packed-tagger", PackedTagger, IDS, options=_WITH_LENGTHS),
    case("packed-pick-last", PackedPickLast, options=_WITH_LENGTHS),
    case("gather-last", GatherLast, options=_WITH_LENGTHS),
    case("bilstm-tagger", BiLSTMTagger, IDS),
    case("bilstm-concat", BiLSTMConcat),
    case("bilstm-both-ends", BiLSTMBothEnds),
    case("states-by-layer", StatesByLayer),
    case("time-major", TimeMajor, options={"batch_first": False}),
    case("permuted-inside", PermutedInside),
    case("plain-rnn-relu", PlainRNN),
    case("projected-lstm", ProjectedLSTM),
    case("sequential", sequential),
    case("embedding-mean", EmbeddingMean, IDS),
    case("max-over-time", MaxOverTime),
    case("mean-max-concat", MeanMaxConcat),
    case("statistics-pooling", StatisticsPooling),
    case("masked-mean", MaskedMean, options=_WITH_LENGTHS),
    case("sum-over-size", SumOverSize),
    case("additive-attention", AdditiveAttention),
    case("repeated-attention", RepeatedAttention),
    case("dot-attention", DotAttention),
    case("softmax-over-time", SoftmaxOverTime),
    case("self-attention", SelfAttention),
    case("attention-weights", AttentionWeights, route="translate equal"),
    case("scaled-self-attention", ScaledSelfAttention),
    case("transformer-behind", TransformerBehind),
    case("cnn-lstm", CnnLstm),
    case("conv-gru", ConvGru),
    case("tcn-gru", TcnGru),
    case("norm-between", NormBetween),
    case("stacked-residual", StackedResidual),
    case("lstm-cell-loop", LSTMCellLoop),
    case("gru-cell-loop", GRUCellLoop),
    case("backward-loop", BackwardLoop),
    case("own-cell", OwnCell),
    case("multi-input", MultiInput, floats_and_static(6, 9, 4)),
    case("static-every-step", StaticEveryStep, floats_and_static(6, 9, 4)),
    case("lightning", LightningLSTM),
    case("torchscript", torchscript),
    case("autoencoder", Autoencoder),
    case("variational-encoder", VariationalEncoder),
    case("seq2seq-encoder", SeqToSeqEncoder, IDS),
    case("seq2seq-forecaster", SeqToSeqForecaster),
    case("char-model", CharModel, IDS, options={"state": {"hidden": "hidden"}}),
    case("stateful-gru", StatefulGRU, options={"state": {"h0": "h_n"}}),
    case("quantile-forecaster", QuantileForecaster),
    case("minmax-forecaster", MinMaxForecaster),
    case("window-normalised", WindowNormalised),
    case("time-distributed", TimeDistributed),
    case("gated-head", GatedHead),
    case("highway", Highway),
    case("skip-with-window", SkipWithWindow),
    case("differenced", Differenced),
    case("positional-gru", PositionalGRU),
    case("reversed-copy", ReversedCopy),
    case("lstm-with-token", LSTMWithToken),
    case("learned-state", LearnedState),
    case("named-outputs", NamedOutputs),
    case("weight-norm-lstm", weight_norm_lstm),
    case("weight-norm-head", WeightNormHead),
    case("checked-lstm", CheckedLSTM),
    case("crnn", SpectrogramCrnn, route="export"),
    case("adaptive-pooling", AdaptivePooling, route="export"),
    case("rolled-steps", RolledSteps, route="export"),
    case("middle-step", MiddleStep, route="export"),
    case("upsampled-features", UpsampledFeatures, route="export"),
    case("triangular", Triangular, route="export"),
    case("square-root-scale", SquareRootScale, route="export"),
    case("local-response", LocalResponse, route="export"),
    case("pair-distances", PairDistances, route="export"),
    case("windows", Windows, route="export"),
    case("strided-frames", StridedFrames, route="translate equal"),
)
