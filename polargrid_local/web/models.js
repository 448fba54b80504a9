// The models: which there are, which is chosen, and loading it with progress shown.

import { announce, byId, el, icon } from './dom.js';

const POLL_MS = 300;

export class Models {
  #client;
  #settings;
  #onError;
  #list = [];
  #states = {};
  #server = 'healthy';
  #menu = byId('model-menu');
  #loads = new Map(); // id -> promise of the load under way

  /** `client()` returns the client of the current API key. `onError(error)` shows what went wrong; null: nothing. */
  constructor(client, settings, onError) {
    this.#client = client;
    this.#settings = settings;
    this.#onError = onError;
    this.#menu.addEventListener('toggle', (event) => {
      if (event.newState === 'open') this.refresh().catch(onError);
    });
    this.#menu.addEventListener('keydown', (event) => this.#onKey(event));
  }

  /** The chosen model's id, or "". */
  get current() {
    return (
      (
        this.#list.find(({ id }) => id === this.#settings.model) ??
        this.#list.find(({ id }) => this.#states[id] === 'loaded') ??
        this.#list[0]
      )?.id ?? ''
    );
  }

  async refresh() {
    const [list] = await Promise.all([this.#client().listModels(), this.#ask()]);
    this.#list = list.data;
    this.#show();
    const { current } = this;
    // A load that another client began: joined, to show its progress.
    if (this.#states[current] === 'loading') this.load(current).catch(this.#onError);
  }

  /** Shows whether the server answers: "healthy", "degraded" or "gone". */
  showServer(state) {
    if (state === this.#server) return;
    this.#server = state;
    announce({ gone: 'The server does not answer', healthy: 'The server answers' }[state] ?? 'The server is degraded');
    this.#show();
  }

  // What is true of a model now: nothing is loaded in a server that is gone.
  #stateOf(id) {
    const state = this.#states[id];
    if (this.#server === 'gone') return 'gone';
    return this.#server === 'degraded' && state === 'loaded' ? 'degraded' : state;
  }

  // How far each load is; the states are brought up to date. A server may unload what it has not used for long.
  async #ask(options) {
    const { loaded, loadingStatus, progress } = await this.#client().getModelStatus(options);
    this.#states = { ...loadingStatus, ...Object.fromEntries(loaded.map((id) => [id, 'loaded'])) };
    return progress ?? {};
  }

  /** Returns when `id` can answer; `onProgress(0..1 or undefined)` is called while it loads. */
  async load(id, { signal, onProgress = () => {} } = {}) {
    const joined = this.#loads.get(id); // asked for first: it may end while the server is still saying "loading"
    await this.#ask({ signal });
    if (this.#states[id] === 'loaded') return;
    if (!joined && !this.#loads.has(id)) {
      this.#states[id] = 'loading';
      this.#loads.set(
        id,
        this.#client()
          .loadModel(id, { timeout: 0 })
          .finally(() => this.#loads.delete(id)),
      );
    }
    const load = joined ?? this.#loads.get(id);
    load.catch(() => {}); // the callers that still wait get the error below
    const stopped = new Promise((_, reject) =>
      signal?.addEventListener('abort', () => reject(signal.reason), { once: true }),
    );
    for (let waiting = true; waiting;) {
      try {
        waiting = await Promise.race([
          load.then(() => false),
          stopped,
          new Promise((resolve) => setTimeout(resolve, POLL_MS, true)),
        ]);
        if (!waiting) break;
        const progress = (await this.#ask({ signal }))[id];
        onProgress(progress);
        this.#show(id, progress);
      } catch (error) {
        if (!signal?.aborted) this.#states[id] = 'failed';
        this.#show();
        throw error;
      }
    }
    this.#states[id] = 'loaded';
    this.#show();
    announce(`${id} is loaded`);
  }

  async #choose(id) {
    this.#settings.model = id;
    this.#onError(null);
    this.#menu.hidePopover();
    this.#show();
    try {
      await this.load(id);
    } catch (error) {
      this.#onError(error);
    }
  }

  async #unload(id) {
    this.#onError(null);
    try {
      await this.#client().unloadModel(id);
      await this.refresh();
    } catch (error) {
      this.#onError(error);
    }
  }

  #show(loading = [...this.#loads.keys()][0], progress = undefined) {
    const { current } = this;
    byId('model-name').textContent = current || 'No model';
    const state = this.#stateOf(current);
    const label = current ? `Model: ${current}, ${words(state)}` : this.#server === 'gone' ? words('gone') : 'No model';
    byId('model-dot').dataset.state = state ?? 'unloaded';
    byId('model-button').setAttribute('aria-label', label);
    byId('model-button').title = label;
    byId('server-state').textContent = { gone: 'no answer from the server', degraded: 'degraded' }[state] ?? '';
    const bar = byId('model-progress');
    bar.hidden = !loading;
    if (progress === undefined) bar.removeAttribute('value');
    else bar.value = progress;
    this.#menu.replaceChildren(
      this.#list.length
        ? el('ul', {}, ...this.#list.map((model) => this.#row(model, model.id === current)))
        : el(
            'p',
            {},
            'There is no model on this machine yet. Fetch one with ',
            el('code', {}, 'polargrid-local pull'),
            '.',
          ),
    );
  }

  #row({ id }, chosen) {
    const state = this.#stateOf(id);
    return el(
      'li',
      {},
      el(
        'button',
        { type: 'button', class: 'model', 'aria-pressed': String(chosen), onclick: () => this.#choose(id) },
        el('span', { class: 'dot', 'data-state': state ?? 'unloaded', 'aria-hidden': 'true' }),
        el('span', {}, el('b', {}, id), el('small', {}, words(state))),
      ),
      this.#states[id] === 'loaded' &&
        el(
          'button',
          {
            type: 'button',
            class: 'quiet',
            title: 'Unload',
            'aria-label': `Unload ${id}`,
            onclick: () => this.#unload(id),
          },
          icon('eject'),
        ),
    );
  }

  #onKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...this.#menu.querySelectorAll('button.model')];
    const at = buttons.indexOf(document.activeElement);
    buttons[(at + step + buttons.length) % buttons.length]?.focus();
  }
}

const words = (state) =>
  ({
    loaded: 'loaded',
    loading: 'loading…',
    failed: 'could not be loaded',
    degraded: 'loaded, but the server is degraded',
    gone: 'the server does not answer',
  })[state] ?? 'not loaded';
