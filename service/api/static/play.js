// The playground: which model, and what it is for. Calls nothing but this server's public API.

import { ForecastPanel } from "./play-forecast.js";
import { asCurl, asPython, fetchJson, useKey } from "./play-request.js";
import { TextPanel } from "./play-text.js";

const find = (id) => document.getElementById(id);
const panels = { forecast: new ForecastPanel(show, showRequest), classify: new TextPanel(show, showRequest) };
let opened = null;

function show(message, isError = false) {
  find("status").textContent = message;
  find("status").classList.toggle("error", isError);
}

function showRequest(body) {
  find("request").hidden = false;
  find("curl").textContent = asCurl(body);
  find("python").textContent = asPython(body);
}

async function listModels() {
  const select = find("model");
  closePanels();
  try {
    const { models } = await fetchJson("/models");
    const names = [...new Set(models.filter(({ state }) => state === "READY").map(({ name }) => name))];
    const wanted = [select.value, readHash()].find((name) => names.includes(name));
    select.replaceChildren(...names.map((name) => new Option(name, name, false, name === wanted)));
    if (names.length) await openModel();
    else show("No model is READY that you may use.", true);
  } catch (error) {
    select.replaceChildren();
    show(error.message, true);
  }
}

function readHash() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

function closePanels() {
  opened = null;
  for (const [task, panel] of Object.entries(panels)) {
    panel.close();
    find(task).hidden = true;
  }
  find("request").hidden = true;
  find("about").textContent = "";
}

async function openModel() {
  const name = find("model").value;
  closePanels();
  show("");
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  try {
    const model = await fetchJson(`/models/${encodeURIComponent(name)}`);
    if (find("model").value !== name) return; // another one was chosen meanwhile
    find("about").textContent = model.description;
    const panel = panels[model.task];
    if (panel) {
      opened = panel;
      find(model.task).hidden = false;
      panel.open(model);
    } else {
      show(`This page shows forecasts and classifications; ${name} is a ${model.task} model: see the API documentation.`);
    }
  } catch (error) {
    show(error.message, true);
  }
}

async function copy(event) {
  const button = event.currentTarget;
  const source = find(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    show("Copied.");
  } catch {
    // Without HTTPS there is no clipboard: what is selected can be copied by hand.
    getSelection().selectAllChildren(source);
    show("Selected: copy it with your keyboard.");
  }
}

find("model").addEventListener("change", openModel);
find("use-key").addEventListener("click", () => {
  useKey(find("key").value);
  listModels();
});
find("key").addEventListener("keydown", (event) => {
  if (event.key === "Enter") find("use-key").click();
});
for (const button of document.querySelectorAll("button[data-copy]")) button.addEventListener("click", copy);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => opened?.redraw());
listModels();
