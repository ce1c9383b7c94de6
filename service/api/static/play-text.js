// The part of the playground that classifies: the label as one types, and what was read word by word.

import { chartColours, drawChart } from "./play-chart.js";
import { Latest, fetchJson } from "./play-request.js";

const find = (id) => document.getElementById(id);
const MAX_EXPLAINED_CHARACTERS = 4000;
const EXAMPLES = { zh: "房间很干净，服务也好，下次还会来。", en: "A quiet, moving film, though the end comes far too late." };
const NOTES = {
  prefix: "What the network makes of the text up to each word: it reads in one direction.",
  occlusion: "What each word does to the answer: the text is classified without it. Underlined words speak against the label.",
};

/** The panel. `show` takes messages for people, `onRequest` the body of each request. */
export class TextPanel {
  #latest = new Latest(150);
  #show;
  #onRequest;
  #model = null;
  #drawn = null;

  constructor(show, onRequest) {
    this.#show = show;
    this.#onRequest = onRequest;
    find("text").addEventListener("input", () => this.#request());
  }

  /** Classify with a model, as `GET /models/{name}` describes it. */
  open(model) {
    this.#model = model;
    const text = find("text");
    const examples = Object.values(EXAMPLES);
    if (!text.value.trim() || examples.includes(text.value)) {
      text.value = EXAMPLES[model.classify.language.split("-")[0].toLowerCase()] ?? EXAMPLES.en;
    }
    text.lang = model.classify.language;
    this.#request();
  }

  close() {
    this.#latest.cancel();
  }

  redraw() {
    if (this.#drawn) this.#drawRunningScore(this.#drawn);
  }

  #request() {
    const text = find("text").value;
    if (!text.trim()) {
      this.#latest.cancel();
      this.#clear();
      return;
    }
    const [method] = this.#model.classify.explain ?? [];
    const wants = method && text.length <= MAX_EXPLAINED_CHARACTERS;
    const plain = { model: this.#model.name, instances: [text] };
    const body = wants ? { ...plain, parameters: { explain: method } } : plain;
    this.#latest.run(async (signal) => {
      try {
        const { content, sent } = await this.#classify(body, plain, signal);
        if (signal.aborted) return;
        this.#onRequest(sent);
        this.#show("");
        this.#draw(content.predictions[0]);
      } catch (error) {
        if (!signal.aborted) this.#show(error.message, true);
      }
    });
    this.#onRequest(body);
  }

  /** With the explanation where the server gives one: a text may have too many words for it. */
  async #classify(body, plain, signal) {
    try {
      return { content: await fetchJson("/predict", body, signal), sent: body };
    } catch (error) {
      if (body === plain || signal.aborted || !error.message.includes("to explain")) throw error;
      return { content: await fetchJson("/predict", plain, signal), sent: plain };
    }
  }

  #clear() {
    this.#drawn = null;
    find("verdict").textContent = "";
    find("words-note").textContent = "";
    find("probabilities").replaceChildren();
    find("words").replaceChildren();
    find("words-title").hidden = find("words-chart").hidden = true;
  }

  #draw(prediction) {
    const { label, score, probabilities, explanation } = prediction;
    const notes = [
      prediction.truncated ? "only a part of the text was read" : "",
      prediction.uncertain ? "the model knows too few of its words" : "",
    ].filter(Boolean);
    find("verdict").textContent = `${label}, ${percent(score)}${notes.length ? ` (${notes.join("; ")})` : ""}`;
    const sorted = Object.entries(probabilities).sort(([, one], [, other]) => other - one);
    find("probabilities").replaceChildren(...sorted.map(([name, value]) => probabilityRow(name, value)));
    this.#drawn = explanation ? { label, explanation } : null;
    find("words-title").hidden = !explanation;
    find("words-chart").hidden = explanation?.method !== "prefix";
    find("words-note").textContent = explanation ? NOTES[explanation.method] : "The text is too long to be explained word by word.";
    if (!explanation) {
      find("words").replaceChildren();
      return;
    }
    const values = explanation.probabilities[label];
    find("words").replaceChildren(...explanation.words.map((word, at) => wordItem(word, values[at], score, explanation.method)));
    this.#drawRunningScore(this.#drawn);
  }

  #drawRunningScore({ label, explanation }) {
    if (explanation.method !== "prefix") return;
    const values = explanation.probabilities[label];
    const { accent } = chartColours();
    const chart = find("words-chart");
    drawChart(chart, {
      series: [{}, { label, stroke: accent, width: 2, points: { show: values.length < 60 } }],
      data: [values.map((_, at) => at + 1), values],
      height: 180,
      range: [0, 1],
    });
    chart.setAttribute("aria-label", `The probability of ${label} after each of ${values.length} words, at last ${percent(values.at(-1))}`);
  }
}

const percent = (value) => `${(100 * value).toFixed(1)} %`;

function probabilityRow(name, value) {
  const row = document.createElement("li");
  row.appendChild(document.createElement("span")).textContent = name;
  const meter = row.appendChild(document.createElement("meter"));
  Object.assign(meter, { min: 0, max: 1, value });
  meter.setAttribute("aria-label", name);
  row.appendChild(document.createElement("span")).textContent = percent(value);
  return row;
}

function wordItem(word, value, score, method) {
  const item = document.createElement("li");
  item.textContent = word;
  // Without the word the label is less probable: then the word speaks for it.
  const weight = method === "prefix" ? value : score - value;
  item.style.setProperty("--weight", String(Math.min(70, Math.round(70 * Math.abs(method === "prefix" ? weight : 2 * weight)))));
  item.classList.toggle("against", weight < -0.005);
  item.title = method === "prefix" ? `up to here ${percent(value)}` : `without it ${percent(value)}`;
  const spoken = item.appendChild(document.createElement("span"));
  spoken.className = "spoken";
  spoken.textContent = `, ${item.title}`;
  return item;
}
