// Whether the server is there: asked while somebody looks at the page, and at once when a request has failed.

import { NetworkError, ServerError, TimeoutError } from './polargrid.js';

const EVERY_MS = 5000;
const EVERY_MS_WHILE_GONE = 2000;
const PATIENCE_MS = 15_000;

export class Health {
  #client;
  #onAnswer;
  #timer = 0;
  #asking = false;

  /** `onAnswer(state)` is called after each look at the server: "healthy", "degraded" or "gone". */
  constructor(client, onAnswer) {
    this.#client = client;
    this.#onAnswer = onAnswer;
    document.addEventListener('visibilitychange', () => {
      clearTimeout(this.#timer);
      if (!document.hidden) this.check();
    });
  }

  /** Looks now, and from then on every few seconds while the page is seen. */
  async check() {
    if (this.#asking) return;
    this.#asking = true;
    clearTimeout(this.#timer);
    const state = await this.#ask();
    this.#asking = false;
    if (!document.hidden)
      this.#timer = setTimeout(() => this.check(), state === 'gone' ? EVERY_MS_WHILE_GONE : EVERY_MS);
    this.#onAnswer(state);
  }

  async #ask() {
    try {
      const { status } = await this.#client().health({ timeout: PATIENCE_MS });
      return status === 'healthy' ? 'healthy' : 'degraded';
    } catch (error) {
      // A proxy whose server is gone answers 502 or 504. A refusal (a key, a limit) comes from a server that is there.
      const gone = [NetworkError, TimeoutError, ServerError].some((kind) => error instanceof kind);
      return gone ? 'gone' : 'healthy';
    }
  }
}
