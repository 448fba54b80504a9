// The chats kept in this browser: IndexedDB, or memory alone where the browser forbids it.
//
// chat    {id, title, updated, system, messages}
// message {id, role, content} and for answers {model, finish, error, stats}; what a running answer adds is not stored

const TRANSIENT = new Set(['state', 'progress', 'live']);

const UNSAVED = 'polargrid.unsaved';

const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, '0')).join('');

const written = (chat) => JSON.stringify(chat, (key, value) => (TRANSIENT.has(key) ? undefined : value));

export const newChat = (system = '') => ({ id: newId(), title: '', updated: Date.now(), system, messages: [] });
export const newMessage = (role, content, extra = {}) => ({ id: newId(), role, content, ...extra });

/** The first line of the first question, or the title given by hand. */
export function titleOf(chat) {
  const first =
    chat.messages
      .find(({ role }) => role === 'user')
      ?.content.trim()
      .split('\n', 1)[0] ?? '';
  const short = first.length > 60 ? `${first.slice(0, 60).trimEnd()}…` : first;
  return chat.title || short || 'New chat';
}

export class Chats {
  #database;
  #memory = new Map();
  #recovered;
  #channel = typeof BroadcastChannel === 'function' ? new BroadcastChannel('polargrid.chats') : null;

  /** `onChange` is called when another tab saved or removed a chat. */
  constructor(onChange) {
    this.#database = open();
    this.#recovered = this.#recover();
    if (this.#channel) this.#channel.onmessage = () => onChange();
  }

  /** All chats, the latest first. */
  async all() {
    await this.#recovered;
    const stored = (await this.#run('readonly', (store) => store.getAll())) ?? [...this.#memory.values()];
    return stored.sort((a, b) => b.updated - a.updated);
  }

  /** True when it will still be there tomorrow. */
  async save(chat) {
    const copy = JSON.parse(written(chat));
    this.#memory.set(chat.id, copy);
    const done = await this.#run('readwrite', (store) => store.put(copy));
    this.#channel?.postMessage('saved');
    return done !== null;
  }

  /** For the moment the page goes away, which does not wait for a database. */
  saveAtOnce(chats) {
    try {
      localStorage.setItem(UNSAVED, `[${chats.map(written)}]`);
    } catch {
      /* full or forbidden: what was saved before remains */
    }
  }

  async remove(id) {
    this.#memory.delete(id);
    await this.#run('readwrite', (store) => store.delete(id));
    this.#channel?.postMessage('removed');
  }

  async #recover() {
    try {
      const chats = JSON.parse(localStorage.getItem(UNSAVED)) ?? [];
      localStorage.removeItem(UNSAVED);
      for (const chat of chats) await this.save(chat);
    } catch {
      /* nothing to recover */
    }
  }

  // The result of one store operation, or null where there is no database or it refused.
  async #run(mode, operation) {
    const database = await this.#database;
    if (!database) return null;
    try {
      const transaction = database.transaction('chats', mode);
      const request = operation(transaction.objectStore('chats'));
      return await new Promise((resolve, reject) => {
        transaction.oncomplete = () => resolve(request.result ?? true);
        transaction.onabort = transaction.onerror = () => reject(transaction.error);
      });
    } catch {
      return null;
    }
  }
}

// A database, or null.
function open() {
  return new Promise((resolve) => {
    try {
      const request = indexedDB.open('polargrid', 1);
      request.onupgradeneeded = () => request.result.createObjectStore('chats', { keyPath: 'id' });
      request.onsuccess = () => resolve(request.result);
      request.onerror = request.onblocked = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
}
