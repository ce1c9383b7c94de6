// Text → the columns of a series. Knows nothing of models or of the page.

const NUMBER = /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i;
const GAP = /^(|na|n\/a|nan|null|none|-)$/i;
const TIME = /^\d{4}-\d{2}(-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[-+]\d{2}:?\d{2})?)?)?$/;
const MAX_CHARACTERS = 8_000_000;

/** `{columns: [{name, values}], times}`: values are numbers, null for a gap; times are texts, null without any. Throws an Error. */
export function parseSeries(text) {
  if (text.length > MAX_CHARACTERS) throw new Error("The series has more than 8 million characters.");
  const lines = text.split(/\r?\n/).map((line) => line.trim());
  while (lines.length && !lines.at(-1)) lines.pop();
  while (lines.length && !lines[0]) lines.shift();
  if (!lines.length) return { columns: [], times: null };
  if (lines.length === 1) return { columns: [readColumn("value", lines[0].split(/[\s,;]+/).filter(Boolean))], times: null };
  const delimiter = ["\t", ";", ","].find((each) => lines[0].includes(each));
  if (!delimiter && !isHeader([lines[0]])) {
    return { columns: [readColumn("value", lines.flatMap((line) => line.split(/\s+/)))], times: null };
  }
  const rows = lines.map((line) => splitRow(line, delimiter));
  const names = isHeader(rows[0]) ? rows.shift() : rows[0].map((_, index) => `column ${index + 1}`);
  const columns = [];
  let times = null;
  names.forEach((name, index) => {
    const cells = rows.map((row) => row[index] ?? "");
    const decimal = delimiter === ";" ? cells.map((cell) => cell.replace(",", ".")) : cells;
    if (decimal.every((cell) => NUMBER.test(cell) || GAP.test(cell)) && decimal.some((cell) => NUMBER.test(cell))) {
      columns.push(readColumn(name || `column ${index + 1}`, decimal));
    } else if (times === null && cells.every((cell) => TIME.test(cell))) {
      times = cells;
    }
  });
  if (!columns.length) throw new Error("No column of the series holds numbers alone.");
  return { columns, times };
}

function isHeader(cells) {
  return cells.every((cell) => !NUMBER.test(cell)) && !cells.some((cell) => TIME.test(cell)) && cells.some((cell) => !GAP.test(cell));
}

function readColumn(name, cells) {
  const values = cells.map((cell) => {
    if (GAP.test(cell)) return null;
    if (NUMBER.test(cell)) return Number(cell);
    throw new Error(`"${cell.slice(0, 40)}" is not a number.`);
  });
  return { name, values };
}

/** The cells of a line of CSV, in which quotation marks may stand around a cell. */
function splitRow(line, delimiter) {
  if (!line.includes('"')) return line.split(delimiter).map((cell) => cell.trim());
  const cells = [];
  let cell = "";
  let isQuoted = false;
  for (let at = 0; at < line.length; at += 1) {
    const character = line[at];
    if (isQuoted && character === '"' && line[at + 1] === '"') {
      cell += '"';
      at += 1;
    } else if (character === '"') {
      isQuoted = !isQuoted;
    } else if (character === delimiter && !isQuoted) {
      cells.push(cell.trim());
      cell = "";
    } else {
      cell += character;
    }
  }
  return [...cells, cell.trim()];
}

/** Seconds since 1970 of a time as it stands, whatever its zone: charts show the times that were given. */
export function toSeconds(time) {
  const [date, clock = "00:00"] = (time.length > 10 ? time.replace(/(Z|[-+]\d{2}:?\d{2})$/, "") : time).split(/[ T]/);
  return Date.parse(`${date.length === 7 ? `${date}-01` : date}T${clock}Z`) / 1000;
}

/** A made-up series with a season, for a model that reads `features` at each step. */
export function exampleSeries(about) {
  const { season_length: season = 1, context_length: context, min_length: shortest, features } = about;
  const period = season > 1 ? season : 12;
  const steps = Math.min(context, Math.max(shortest, 4 * period));
  const value = (step, shift) => 100 + 30 * Math.sin((2 * Math.PI * (step + shift)) / period) + 6 * Math.sin((step + shift) / 5);
  const rows = Array.from({ length: steps }, (_, step) => features.map((_, index) => value(step, 3 * index).toFixed(1)));
  if (features.length === 1) return rows.map(([cell]) => cell).join("\n");
  return [features.map((name) => `"${name.replaceAll('"', '""')}"`), ...rows].map((row) => row.join(",")).join("\n");
}
