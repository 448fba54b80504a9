// The settings: what they are, where they are kept, and their dialog.

import { byId } from './dom.js';
import { FOLDER } from './place.js';

const KEY = `polargrid.settings${FOLDER}`;
const DEFAULTS = { maxTokens: 2048 };
const SAMPLING = [
  'temperature',
  'maxTokens',
  'topP',
  'topK',
  'minP',
  'repetitionPenalty',
  'frequencyPenalty',
  'presencePenalty',
  'seed',
];

const FORMS = { schema: schemaIn, tools: toolsIn }; // fields whose text is JSON, and what reads it

export class Settings {
  #values;
  #dialog = byId('settings');
  #form = byId('settings-form');
  #onSave = () => {};

  constructor() {
    this.#values = { ...DEFAULTS, ...stored() };
    for (const name of Object.keys(FORMS))
      if (problemOf(name, this.#values[name] ?? '')) this.#values[name] = undefined; // not stored by this page
    byId('settings-cancel').addEventListener('click', () => this.#dialog.close());
    byId('settings-reset').addEventListener('click', () => this.#fill({ ...DEFAULTS }));
    for (const name of Object.keys(FORMS))
      this.#form.elements[name].addEventListener('input', () => this.#complain(name, ''));
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
      if (!this.#isRight()) return;
      this.#read();
      this.#dialog.close();
    });
  }

  get apiKey() {
    return this.#values.apiKey ?? '';
  }
  get model() {
    return this.#values.model ?? '';
  }
  set model(id) {
    this.#store({ ...this.#values, model: id });
  }
  /** The system prompt of the next new chat. */
  get system() {
    return this.#values.system ?? '';
  }

  /** The part of a request that comes from here; what is not set is left out. */
  get request() {
    const { stop, schema, tools, toolChoice } = this.#values;
    const chosen = Object.fromEntries(
      SAMPLING.filter((name) => this.#values[name] !== undefined).map((name) => [name, this.#values[name]]),
    );
    if (stop?.length) chosen.stop = stop;
    if (schema) {
      const jsonSchema = { name: 'answer', schema: schemaIn(schema), strict: true };
      chosen.responseFormat = { type: 'json_schema', jsonSchema };
    }
    const list = tools ? toolsIn(tools) : [];
    if (list.length) chosen.tools = list;
    if (list.length && toolChoice) chosen.toolChoice = toolChoice;
    return chosen;
  }

  /** Opens the dialog; `onSave(system)` gets the system prompt for the chat on the screen. */
  edit(system, onSave, focus = 'system') {
    this.#onSave = onSave;
    this.#fill(this.#values);
    this.#form.elements.system.value = system;
    this.#form.elements.apiKey.value = this.apiKey;
    this.#form.elements.toolChoice.value = this.#values.toolChoice ?? '';
    for (const name of Object.keys(FORMS)) {
      this.#form.elements[name].value = this.#values[name] ?? '';
      this.#complain(name, '');
    }
    this.#dialog.showModal();
    this.#form.elements[focus].focus();
  }

  #fill(values) {
    for (const name of SAMPLING) this.#form.elements[name].value = values[name] ?? '';
    this.#form.elements.stop.value = (values.stop ?? []).join('\n');
  }

  // Whether every text that is JSON can be read; what is wrong is said at its field.
  #isRight() {
    const wrong = Object.keys(FORMS).filter((name) => {
      const problem = problemOf(name, this.#form.elements[name].value);
      this.#complain(name, problem);
      return problem;
    });
    if (!wrong.length) return true;
    this.#form.elements[wrong[0]].focus();
    byId(`${wrong[0]}-problem`).scrollIntoView({ block: 'nearest' });
    return false;
  }

  #complain(name, problem) {
    const place = byId(`${name}-problem`);
    place.textContent = problem;
    place.hidden = !problem;
    this.#form.elements[name].setAttribute('aria-invalid', String(Boolean(problem)));
  }

  #read() {
    const { elements } = this.#form;
    const values = { model: this.model, system: elements.system.value.trim(), apiKey: elements.apiKey.value };
    for (const name of SAMPLING) if (elements[name].value !== '') values[name] = Number(elements[name].value);
    for (const name of Object.keys(FORMS)) if (elements[name].value.trim()) values[name] = elements[name].value;
    if (elements.toolChoice.value) values.toolChoice = elements.toolChoice.value;
    values.stop = elements.stop.value.split('\n').filter((line) => line !== '');
    this.#store(values);
    this.#onSave(values.system);
  }

  #store(values) {
    this.#values = values;
    // A field that was emptied must not come back as its default.
    const kept = { ...values, maxTokens: values.maxTokens ?? null };
    try {
      localStorage.setItem(KEY, JSON.stringify(kept));
    } catch {
      /* then they last as long as the page */
    }
  }
}

// What is wrong with the text of a field, in words for the reader; "" where nothing is.
function problemOf(name, text) {
  try {
    if (text.trim()) FORMS[name](text);
    return '';
  } catch (error) {
    return error.message;
  }
}

function json(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SyntaxError(`This is not JSON: ${error.message}.`);
  }
}

const isObject = (value) => Object.prototype.toString.call(value) === '[object Object]';

// The JSON schema in `text`. Throws, with words for the reader, what is none.
function schemaIn(text) {
  const schema = json(text);
  if (!isObject(schema)) throw new TypeError('A JSON schema is an object: {"type": "object", ...}.');
  if (isObject(schema.schema ?? schema.json_schema))
    throw new TypeError('This has a schema inside: only that one belongs here, without what is around it.');
  return schema;
}

// The tools in `text`, as a request has them. Throws, with words for the reader, what are none.
function toolsIn(text) {
  const list = json(text);
  if (!Array.isArray(list)) throw new TypeError('Tools are a list: [{"name": ..., "parameters": {...}}].');
  return list.map((tool, at) => {
    const { type = 'function', function: inner, ...flat } = isObject(tool) ? tool : {};
    const called = inner ?? flat;
    if (type !== 'function') throw new TypeError(`Tool ${at + 1} is of another type than "function".`);
    if (typeof called.name !== 'string' || !called.name) throw new TypeError(`Tool ${at + 1} has no name.`);
    return { type, function: called };
  });
}

function stored() {
  try {
    const values = JSON.parse(localStorage.getItem(KEY)) ?? {};
    return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, value ?? undefined]));
  } catch {
    return {};
  }
}
