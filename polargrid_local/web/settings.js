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

export class Settings {
  #values;
  #dialog = byId('settings');
  #form = byId('settings-form');
  #onSave = () => {};

  constructor() {
    this.#values = { ...DEFAULTS, ...stored() };
    byId('settings-cancel').addEventListener('click', () => this.#dialog.close());
    byId('settings-reset').addEventListener('click', () => this.#fill({ ...DEFAULTS }));
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
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
  get sampling() {
    const chosen = Object.fromEntries(
      SAMPLING.filter((name) => this.#values[name] !== undefined).map((name) => [name, this.#values[name]]),
    );
    return this.#values.stop?.length ? { ...chosen, stop: this.#values.stop } : chosen;
  }

  /** Opens the dialog; `onSave(system)` gets the system prompt for the chat on the screen. */
  edit(system, onSave, focus = 'system') {
    this.#onSave = onSave;
    this.#fill(this.#values);
    this.#form.elements.system.value = system;
    this.#form.elements.apiKey.value = this.apiKey;
    this.#dialog.showModal();
    this.#form.elements[focus].focus();
  }

  #fill(values) {
    for (const name of SAMPLING) this.#form.elements[name].value = values[name] ?? '';
    this.#form.elements.stop.value = (values.stop ?? []).join('\n');
  }

  #read() {
    const { elements } = this.#form;
    const values = { model: this.model, system: elements.system.value.trim(), apiKey: elements.apiKey.value };
    for (const name of SAMPLING) if (elements[name].value !== '') values[name] = Number(elements[name].value);
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

function stored() {
  try {
    const values = JSON.parse(localStorage.getItem(KEY)) ?? {};
    return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, value ?? undefined]));
  } catch {
    return {};
  }
}
