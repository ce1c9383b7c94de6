// The part of the playground that forecasts: a series, its forecast with bands, the horizon.

import { chartColours, drawChart } from "./play-chart.js";
import { Latest, fetchJson } from "./play-request.js";
import { exampleSeries, parseSeries, toSeconds } from "./play-series.js";

const find = (id) => document.getElementById(id);
// Of a long history so many steps are shown: what the model reads, and some before it.
const SHOWN_STEPS = 2000;

/** The panel. `show` takes messages for people, `onRequest` the body of each request. */
export class ForecastPanel {
  #latest = new Latest(120);
  #show;
  #onRequest;
  #model = null;
  #parsed = null;
  #drawn = null;

  constructor(show, onRequest) {
    this.#show = show;
    this.#onRequest = onRequest;
    const series = find("series");
    series.addEventListener("input", () => this.#read());
    find("example-series").addEventListener("click", () => this.#useText(exampleSeries(this.#model.forecast)));
    find("file").addEventListener("change", (event) => this.#readFile(event.target.files[0]));
    for (const name of ["dragenter", "dragover"]) {
      series.addEventListener(name, (event) => {
        event.preventDefault();
        series.classList.add("over");
      });
    }
    for (const name of ["dragleave", "drop"]) series.addEventListener(name, () => series.classList.remove("over"));
    series.addEventListener("drop", (event) => {
      event.preventDefault();
      const { files } = event.dataTransfer;
      if (files.length) this.#readFile(files[0]);
      else this.#useText(event.dataTransfer.getData("text"));
    });
    find("horizon").addEventListener("input", () => this.#request());
    for (const id of ["column", "frequency"]) find(id).addEventListener("change", () => this.#request());
    find("target").addEventListener("change", () => this.#draw());
  }

  /** Forecast with a model, as `GET /models/{name}` describes it. */
  open(model) {
    this.#model = model;
    const { horizon, max_horizon: longest, targets, frequencies } = model.forecast;
    Object.assign(find("horizon"), { max: longest, value: horizon });
    fillSelect("target", targets.map((name, index) => [index, name]), targets.length > 1);
    fillSelect("frequency", frequencies.map((name) => [name, name]), frequencies.length > 1);
    if (find("series").value.trim()) this.#read();
    else this.#useText(exampleSeries(model.forecast));
  }

  close() {
    this.#latest.cancel();
  }

  redraw() {
    if (this.#drawn) this.#draw();
  }

  #useText(text) {
    find("series").value = text;
    this.#read();
  }

  async #readFile(file) {
    if (!file) return;
    try {
      this.#useText(await file.text());
    } catch (error) {
      this.#show(`The file cannot be read: ${error.message}`, true);
    }
  }

  #read() {
    try {
      this.#parsed = parseSeries(find("series").value);
      this.#show("");
    } catch (error) {
      this.#parsed = null;
      this.#latest.cancel();
      this.#show(error.message, true);
      return;
    }
    const { columns } = this.#parsed;
    const isSingle = this.#model.forecast.features.length === 1;
    fillSelect("column", columns.map(({ name }, index) => [index, name]), isSingle && columns.length > 1);
    this.#request();
  }

  /** The rows of the history, null where the columns are not those of the model. */
  #history() {
    const { features } = this.#model.forecast;
    const { columns } = this.#parsed;
    if (features.length === 1) return columns[Number(find("column").value)].values;
    const named = features.map((feature) => columns.find(({ name }) => name === feature));
    const chosen = named.every(Boolean) ? named : columns.slice(0, features.length);
    if (chosen.length < features.length) {
      throw new Error(`The model reads ${features.length} columns: ${features.join(", ")}. The series has ${columns.length}.`);
    }
    return chosen[0].values.map((_, step) => chosen.map(({ values }) => values[step]));
  }

  #request() {
    const horizon = Number(find("horizon").value);
    find("horizon-value").textContent = `${horizon} step${horizon === 1 ? "" : "s"}`;
    if (!this.#parsed?.columns.length) return;
    const about = this.#model.forecast;
    let history;
    try {
      history = this.#history();
    } catch (error) {
      this.#latest.cancel();
      this.#show(error.message, true);
      return;
    }
    // Of a longer history the model reads nothing.
    const start = Math.max(0, history.length - about.context_length);
    const instance = { history: history.slice(start), horizon };
    const times = this.#parsed.times;
    const frequency = about.frequencies.length > 1 ? find("frequency").value : about.frequencies[0];
    if (times && frequency) Object.assign(instance, { start: asStart(times[start]), frequency });
    const body = { model: this.#model.name, instances: [instance] };
    this.#onRequest(body);
    this.#latest.run(async (signal) => {
      try {
        const answer = await fetchJson("/predict", body, signal);
        if (signal.aborted) return;
        this.#drawn = { history, times, prediction: answer.predictions[0] };
        this.#show("");
        this.#draw();
      } catch (error) {
        if (!signal.aborted) this.#show(error.message, true);
      }
    });
  }

  #draw() {
    const { history, times, prediction } = this.#drawn;
    const { targets, features } = this.#model.forecast;
    const target = targets.length > 1 ? Number(find("target").value) : 0;
    const pick = (values) => values.map((value) => (Array.isArray(value) ? value[target] : value));
    const place = features.indexOf(targets[target]);
    const past = history.map((value) => (Array.isArray(value) ? value[place] : value)).slice(-SHOWN_STEPS);
    const point = pick(prediction.forecast);
    const levels = Object.keys(prediction.quantiles ?? {}).sort((one, other) => one - other);
    const quantiles = levels.map((level) => pick(prediction.quantiles[level]));
    const isDated = Boolean(times && prediction.timestamps);
    const steps = isDated
      ? [...times.slice(-past.length), ...prediction.timestamps].map(toSeconds)
      : [...past.map((_, step) => step + 1 - past.length), ...point.map((_, step) => step + 1)];
    // The forecast begins at the last value, so that no gap opens between them.
    const last = past.findLast((value) => value !== null) ?? null;
    const ahead = (values) => [...Array(past.length - 1).fill(null), last, ...values];
    const colours = chartColours();
    const pairs = Math.floor(levels.length / 2);
    const series = [{}, { label: "history", stroke: colours.text, width: 1.5 }];
    const data = [steps, [...past, ...Array(point.length).fill(null)]];
    const bands = [];
    for (let pair = 0; pair < pairs; pair += 1) {
      const top = series.length;
      series.push(...[levels.length - 1 - pair, pair].map((at) => ({ label: levels[at], stroke: "transparent", points: { show: false } })));
      data.push(ahead(quantiles[levels.length - 1 - pair]), ahead(quantiles[pair]));
      bands.push({ series: [top, top + 1], fill: colours.band });
    }
    series.push({ label: "forecast", stroke: colours.accent, width: 2 });
    data.push(ahead(point));
    const chart = find("forecast-chart");
    drawChart(chart, { series, data, bands, height: 320, isDated });
    const ends = `from ${format(point[0])} to ${format(point.at(-1))}`;
    chart.setAttribute("aria-label", `A history of ${past.length} values and a forecast of ${point.length} steps, ${ends}`);
    const widest = pairs ? [["band", `${percent(levels[0])} to ${percent(levels.at(-1))}, ${pairs} band${pairs === 1 ? "" : "s"}`]] : [];
    showLegend([["text", "history"], ["accent", "forecast"], ...widest], colours);
    const when = (step) => prediction.timestamps?.[step] ?? String(step + 1);
    const shown = pairs ? [0, levels.length - 1] : [];
    fillTable(
      ["step", "forecast", ...shown.map((at) => percent(levels[at]))],
      point.map((value, step) => [when(step), format(value), ...shown.map((at) => format(quantiles[at][step]))]),
    );
  }
}

const format = (value) => (value === null ? "" : String(Number(value.toPrecision(6))));
const percent = (level) => `${Number((100 * level).toPrecision(4))} %`;
const asStart = (time) => (time.length === 7 ? `${time}-01` : time);

function fillSelect(id, options, isShown) {
  const select = find(id);
  const before = select.selectedOptions[0]?.textContent;
  select.replaceChildren(...options.map(([value, name]) => new Option(name, value, false, name === before)));
  find(`${id}-field`).hidden = !isShown;
}

function showLegend(entries, colours) {
  const parts = entries.map(([colour, text]) => {
    const part = document.createElement("span");
    part.textContent = text;
    part.style.setProperty("--colour", colours[colour]);
    return part;
  });
  find("forecast-legend").replaceChildren(...parts);
}

function fillTable(names, rows) {
  const row = (kind, cells) => {
    const made = document.createElement("tr");
    for (const cell of cells) made.appendChild(document.createElement(kind)).textContent = cell;
    return made;
  };
  find("forecast-head").replaceChildren(row("th", names));
  find("forecast-rows").replaceChildren(...rows.map((cells) => row("td", cells)));
  find("forecast-values").hidden = false;
}
