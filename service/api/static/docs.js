// Draws /docs from /openapi.json, and lets the reader ask the public doors. No framework, nothing from elsewhere.
"use strict";

const METHODS = ["get", "post"];

/** An element with attributes, and children that are elements or text. */
function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

/** Text with `code` marked by backticks. */
function prose(text) {
  return (text || "").split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part));
}

class Schemas {
  constructor(document) {
    this.named = document.components.schemas;
  }

  /** The schema itself, where it is given as a reference. */
  resolve(schema) {
    return schema && schema.$ref ? this.named[schema.$ref.split("/").pop()] : schema || {};
  }

  /** The alternatives of a schema, without null. */
  choices(schema) {
    const found = this.resolve(schema);
    return found.anyOf ? found.anyOf.filter((choice) => choice.type !== "null").flatMap((c) => this.choices(c)) : [found];
  }

  /** The name of a type as a person would say it. */
  type(schema) {
    const names = this.choices(schema).map((choice) => {
      if (choice.type === "array") return choice.items ? `list of ${this.entry(choice.items)}` : "list";
      if (choice.const !== undefined) return JSON.stringify(choice.const);
      if (choice.enum) return choice.enum.length > 4 ? "one of the codes below" : choice.enum.map((v) => JSON.stringify(v)).join(" or ");
      return choice.properties ? "object" : choice.type || "any";
    });
    return [...new Set(names)].join(" or ");
  }

  /** The type of a list's entries, null among them: a field may be left out, an entry may not. */
  entry(schema) {
    const type = this.type(schema);
    const isNullable = (this.resolve(schema).anyOf || []).some((choice) => choice.type === "null");
    if (isNullable) return `(${type} or null)`;
    return this.choices(schema).length > 1 ? `(${type})` : type;
  }

  /** An example value, from the field's own examples where it has some. */
  example(schema) {
    const found = this.resolve(schema);
    if (schema.examples) return schema.examples[0];
    if (found.examples) return found.examples[0];
    const choice = this.choices(found)[0] || {};
    if (choice.examples) return choice.examples[0];
    if (choice.properties) return this.exampleObject(choice);
    if (choice.type === "array") return [this.example(choice.items || {})];
    if (choice.const !== undefined) return choice.const;
    return choice.default === undefined ? null : choice.default;
  }

  exampleObject(schema) {
    const entries = Object.entries(schema.properties).map(([name, field]) => [name, this.example(field)]);
    return Object.fromEntries(entries.filter(([, value]) => value !== null));
  }
}

/** One row per field, nested objects below their parent. */
function fieldRows(schemas, schema, prefix = "", depth = 0) {
  const required = new Set(schema.required || []);
  return Object.entries(schema.properties || {}).flatMap(([name, field]) => {
    const path = prefix + name;
    const example = schemas.example(field);
    const row = element(
      "tr",
      {},
      element("td", {}, element("code", {}, path), ...(required.has(name) ? [element("div", { className: "required" }, "required")] : [])),
      element("td", {}, schemas.type(field)),
      element("td", {}, ...prose(field.description), ...(example === null ? [] : [" ", element("code", {}, shorten(JSON.stringify(example)))])),
    );
    const inner = schemas.choices(field).flatMap((choice) =>
      choice.type === "array" ? schemas.choices(choice.items || {}).map((c) => [c, "[]."]) : [[choice, "."]],
    );
    const nested = depth > 2 ? [] : inner.flatMap(([choice, mark]) => fieldRows(schemas, choice, path + mark, depth + 1));
    return [row, ...nested];
  });
}

function shorten(text) {
  return text.length > 90 ? `${text.slice(0, 87)}…` : text;
}

function fieldTable(schemas, schema) {
  const rows = fieldRows(schemas, schemas.resolve(schema));
  const head = element("tr", {}, ...["Field", "Type", "What it is"].map((text) => element("th", {}, text)));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
}

/** A body that the models of this very server answer; else one made from the examples of the fields. */
async function bodyToTry(path, schemas, schema) {
  const task = { "/predict/sentiment": "classify", "/predict/forecast": "forecast", "/predict": null }[path];
  const made = schemas.exampleObject(schemas.resolve(schema));
  if (task === undefined) return made;
  const { models } = await (await fetch("/models")).json();
  const served = models.filter((model) => model.state === "READY" && (task === null || model.task === task));
  if (served.length === 0) return made;
  const model = await (await fetch(`/models/${encodeURIComponent(served[0].name)}`)).json();
  const body = { model: model.name, instances: [] };
  if (model.task === "classify") body.instances = ["A quiet, moving film.", "Two hours of my life that I want back."];
  else if (model.task === "forecast") body.instances = [{ history: wave(model.forecast), horizon: Math.min(6, model.forecast.horizon) }];
  else return made;
  return body;
}

/** A daily wave, as long and as wide as the model asks. */
function wave({ min_length, features }) {
  const value = (step, feature) => Math.round(10 * (20 + 5 * feature + 8 * Math.sin((2 * Math.PI * step) / 24))) / 10;
  return Array.from({ length: Math.max(24, min_length) }, (_, step) =>
    features.length === 1 ? value(step, 0) : features.map((_, feature) => value(step, feature)),
  );
}

function tryForm(path, method, operation, schemas) {
  const answer = element("pre", { hidden: true });
  const status = element("p", { hidden: true });
  const form = element("form", {});
  const parameters = (operation.parameters || []).filter((parameter) => parameter.in === "path");
  const inputs = parameters.map((parameter) => {
    const input = element("input", { required: true, ariaLabel: parameter.name, placeholder: parameter.name });
    form.append(input, " ");
    return [parameter.name, input];
  });
  const body = operation.requestBody;
  let text = null;
  if (body) {
    text = element("textarea", { spellcheck: false, ariaLabel: "Body" });
    form.append(text);
    bodyToTry(path, schemas, body.content["application/json"].schema).then((example) => {
      text.value = JSON.stringify(example, null, 2).replace(/\[\s+([-\d.,\s]+?)\s+\]/g, (_, numbers) => `[${numbers.replace(/\s+/g, " ")}]`);
    });
  }
  form.append(element("button", {}, "Send"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const url = inputs.reduce((url, [name, input]) => url.replace(`{${name}}`, encodeURIComponent(input.value)), path);
    const request = { method: method.toUpperCase() };
    if (text) Object.assign(request, { body: text.value, headers: { "Content-Type": "application/json" } });
    const started = performance.now();
    status.hidden = answer.hidden = false;
    try {
      const response = await fetch(url, request);
      const content = await response.text();
      status.textContent = `${response.status} ${response.statusText} in ${Math.round(performance.now() - started)} ms`;
      status.className = response.ok ? "status-ok" : "status-bad";
      answer.textContent = pretty(content);
    } catch (error) {
      status.textContent = `no answer: ${error.message}`;
      status.className = "status-bad";
      answer.textContent = "";
    }
  });
  return element("details", { open: Boolean(body) }, element("summary", {}, "Try it"), form, status, answer);
}

function pretty(content) {
  try {
    return JSON.stringify(JSON.parse(content), null, 2).replace(/\[\s+([-\d.e,\s]+?)\s+\]/g, (_, numbers) => `[${numbers.replace(/\s+/g, " ")}]`);
  } catch {
    return content;
  }
}

function door(path, method, operation, schemas) {
  const id = `${method}-${path}`;
  const section = element(
    "section",
    {},
    element("h2", { id }, element("span", { className: "method" }, method.toUpperCase()), " ", element("code", {}, path)),
    element("p", {}, ...prose(operation.description || operation.summary)),
  );
  if (operation.requestBody) {
    section.append(element("h3", {}, "Takes"), fieldTable(schemas, operation.requestBody.content["application/json"].schema));
  }
  const answers = Object.entries(operation.responses);
  const [, good] = answers.find(([status]) => status === "200") || [];
  const schema = good && good.content && good.content["application/json"] && good.content["application/json"].schema;
  if (schema && schema.$ref) section.append(element("h3", {}, "Answers"), fieldTable(schemas, schema));
  const bad = answers.filter(([status]) => status !== "200");
  if (bad.length) {
    const items = bad.map(([status, response]) => element("li", {}, element("code", {}, status), ` ${response.description}`));
    section.append(element("details", {}, element("summary", {}, "Errors"), element("ul", {}, ...items)));
  }
  section.append(tryForm(path, method, operation, schemas));
  return [element("a", { href: `#${id}` }, `${method.toUpperCase()} ${path}`), section];
}

async function draw() {
  const document_ = await (await fetch("/openapi.json")).json();
  const schemas = new Schemas(document_);
  document.querySelector("h1").textContent = `${document_.info.title} ${document_.info.version}`;
  document.querySelector("#about").append(...prose(document_.info.description));
  const contents = document.querySelector("#contents");
  for (const [path, operations] of Object.entries(document_.paths)) {
    for (const method of METHODS.filter((name) => name in operations)) {
      const [link, section] = door(path, method, operations[method], schemas);
      contents.append(link);
      document.querySelector("#doors").append(section);
    }
  }
  contents.append(element("a", { href: "#errors" }, "Errors"));
  const rows = document_["x-errors"].map((error) =>
    element(
      "tr",
      { id: `error-${error.code}` },
      element("td", {}, String(error.status)),
      element("td", {}, element("code", {}, error.code)),
      element("td", {}, `${error.title}: ${error.description}`),
    ),
  );
  document.querySelector("#error-table tbody").append(...rows);
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

draw();
