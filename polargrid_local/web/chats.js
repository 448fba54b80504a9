// The chats kept in this browser: IndexedDB, or memory alone where the browser forbids it.
//
// chat    {id, title, updated, system, messages}
// message {id, role, content} and for answers {model, finish, error, stats, isJson, reasoningContent, toolCalls}; what
//         a running answer adds is not stored. The results of an answer's calls are messages of the role "tool".
//
// Tabs share the store. A tab that saves merges its changes into what is stored by then, and shows what others changed.

import { applied, changes, isNothing } from './merge.js';
import { FOLDER } from './place.js';

const TRANSIENT = new Set(['state', 'progress', 'live', 'removed']);
const UNSAVED = `polargrid.unsaved${FOLDER}.`;

const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, '0')).join('');

const copied = (chat) =>
  JSON.parse(JSON.stringify(chat, (key, value) => (TRANSIENT.has(key) ? undefined : value)));

export const newChat = (system = '') => ({ id: newId(), title: '', updated: Date.now(), system, messages: [] });
export const newMessage = (role, content, extra = {}) => ({ id: newId(), role, content, ...extra });

// Made of the answer and the place of the call in it: two tabs that give a result to one call write one message.
const resultId = (message, index) => `${message.id}.${index}`;

/** What the call at `index` of an answer's calls came to. */
export const newResult = (message, index, content) => ({ id: resultId(message, index), role: 'tool', content });

/** A list as long as the answer's calls: the results of those that have one, else undefined. */
export const resultsOf = (chat, message) =>
  (message.toolCalls ?? []).map((call, index) => chat.messages.find(({ id }) => id === resultId(message, index)));

/** Whether the answer ended of itself: what was cut of its calls is no call. */
export const isWhole = ({ finish, error }) => !error && (finish === 'stop' || finish === 'tool_calls');

/** The last message, results of calls aside. */
export const lastOf = (chat) => chat.messages.findLast(({ role }) => role !== 'tool');

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
  /** Every chat, as this tab shows it; one that was removed stays, marked, for as long as it can be brought back. */
  list = [];
  #stored = new Map(); // id -> the chat as it was last read or written
  #removing = new Set(); // ids that the store still has to remove
  #onChange;
  #watched = new Set(); // ids of messages that another tab is writing, until they end
  #database;
  #hasStore = true;
  #setAside = new Set(); // keys of what an earlier page left behind and the store has no room for; shown meanwhile
  #last = Promise.resolve(); // steps on the store run one after another: each starts from what the one before read
  #channel = typeof BroadcastChannel === 'function' ? new BroadcastChannel(`polargrid.chats${FOLDER}`) : null;

  /** `onChange(chat)` is called when another tab changed, added or removed a chat. */
  constructor(onChange) {
    this.#onChange = onChange;
    this.#open();
    if (this.#channel) this.#channel.onmessage = ({ data: id }) => this.refresh(id);
  }

  /** Brings the list up to date with the store, one chat or all. */
  refresh(id) {
    return this.#inTurn(async () => {
      const left = await this.#recover();
      const read = await this.#run('readonly', (store) => (id ? store.get(id) : store.getAll()));
      if (read.error) return;
      const found = [read.result].flat().filter(Boolean);
      const present = new Set(found.map((chat) => chat.id));
      const lost = this.list.filter(
        (chat) => (!id || chat.id === id) && this.#stored.has(chat.id) && !present.has(chat.id),
      );
      for (const chat of found) this.#take(chat);
      for (const chat of lost) this.#lose(chat);
      for (const change of left) this.#show(applied(copied(this.find(change.id) ?? null), { ...change, isNew: true }));
    });
  }

  find(id) {
    return this.list.find((chat) => chat.id === id);
  }

  /**
   * Stores what changed in `chat`, and takes over what other tabs changed in it. Returns what became of it: "saved",
   * "removed" (another tab removed the chat), "full" (no room), "failed", or "kept" (in memory alone: no store).
   */
  save(chat) {
    if (!this.list.includes(chat)) this.list.push(chat);
    return this.#inTurn(async () => {
      if (chat.removed) return 'removed';
      const sent = copied(chat);
      const write = await this.#apply(changes(this.#stored.get(chat.id), sent));
      if (write.error) return write.failure;
      if (!write.result) {
        this.#lose(chat);
        return 'removed';
      }
      this.#take(write.result, sent);
      this.#channel?.postMessage(chat.id);
      return 'saved';
    });
  }

  /** The chats that hold something that is not stored. */
  unsaved() {
    return this.list.filter((chat) => !chat.removed && !isNothing(changes(this.#stored.get(chat.id), copied(chat))));
  }

  /**
   * For the moment the page goes away, when there is no time for a database: localStorage keeps the changes until the
   * next page that opens stores them.
   */
  saveAtOnce() {
    if (!this.#hasStore) return;
    try {
      const left = this.unsaved().map((chat) => changes(this.#stored.get(chat.id), copied(chat)));
      if (left.length) localStorage.setItem(UNSAVED + newId(), JSON.stringify(left));
      for (const key of this.#setAside) localStorage.removeItem(key);
    } catch {
      /* full or forbidden: what was saved before remains */
    }
  }

  remove(chat) {
    chat.removed = true;
    this.#removing.add(chat.id);
    return this.#inTurn(async () => {
      await this.#run('readwrite', (store) => store.delete(chat.id));
      this.#removing.delete(chat.id);
      this.#channel?.postMessage(chat.id);
    });
  }

  /** Brings a removed chat back; to be saved then. */
  restore(chat) {
    if (!chat.removed) return;
    chat.removed = undefined;
    this.#removing.delete(chat.id);
    this.#stored.delete(chat.id);
  }

  /** Runs `answering()` while other tabs can see that this message is being written. */
  async hold(message, answering) {
    if (!navigator.locks) return answering(); // no locks on a page from another machine over plain http
    return navigator.locks.request(lockOf(message), answering);
  }

  /** True while another tab writes this message; `whenDone()` is called when that tab is through, or gone. */
  async isWrittenElsewhere(message, whenDone) {
    const { held = [] } = (await navigator.locks?.query()) ?? {};
    if (!held.some(({ name, mode }) => name === lockOf(message) && mode === 'exclusive')) return false;
    if (!this.#watched.has(message.id)) {
      this.#watched.add(message.id);
      navigator.locks
        .request(lockOf(message), { mode: 'shared' }, () => this.#watched.delete(message.id))
        .then(whenDone);
    }
    return true;
  }

  // One step after another; a step that fails does not stop the next.
  #inTurn(step) {
    const turn = this.#last.then(step);
    this.#last = turn.catch(() => {});
    return turn;
  }

  // What the store holds now becomes part of the chat shown here; what changed here since `sent` stays.
  #take(stored, sent = this.#stored.get(stored.id)) {
    const shown = this.find(stored.id);
    this.#stored.set(stored.id, stored);
    this.#show(shown ? applied(stored, changes(sent, copied(shown))) : stored);
  }

  // Brings the chat in the list to this content; the objects of its messages stay, as others hold them.
  #show(chat) {
    let shown = this.find(chat.id);
    if (!shown) this.list.push((shown = { ...chat, messages: [], removed: true }));
    const removed = this.#removing.has(chat.id) || undefined;
    const differs = shown.removed !== removed || !isNothing(changes(copied(shown), chat));
    const objects = new Map(shown.messages.map((message) => [message.id, message]));
    const messages = chat.messages.map((message) => Object.assign(objects.get(message.id) ?? {}, message));
    Object.assign(shown, chat, { messages, removed });
    if (differs) this.#onChange(shown);
  }

  // Another tab removed the chat.
  #lose(chat) {
    if (chat.removed) return;
    chat.removed = true;
    this.#onChange(chat);
  }

  // Applies one change to the store in a single transaction, so that no other tab writes in between.
  #apply(change) {
    return this.#run('readwrite', (store, then) => {
      then(store.get(change.id), (stored) => {
        const chat = applied(stored, change);
        if (chat) store.put(chat);
        return chat;
      });
    });
  }

  // Stores the changes that closed pages left in localStorage, and removes them there once they are stored. Returns
  // those that the database has no room for.
  async #recover() {
    const left = [];
    try {
      for (const key of Object.keys(localStorage)) {
        if (!key.startsWith(UNSAVED) || this.#setAside.has(key)) continue;
        const before = left.length;
        for (const change of JSON.parse(localStorage.getItem(key)) ?? []) {
          const { error } = await this.#apply(change);
          if (error) left.push(change);
          else this.#channel?.postMessage(change.id);
        }
        if (left.length === before) localStorage.removeItem(key);
        else this.#setAside.add(key);
      }
    } catch {
      /* nothing to recover */
    }
    return left;
  }

  // {result} of one transaction, or {error, failure} where there is no database or it refused. The result is that of
  // the request which `operation` returns, or what the step after a request, given to `then`, returns.
  async #run(mode, operation) {
    let database = null;
    try {
      database = await this.#database;
      const result = await new Promise((resolve, reject) => {
        const transaction = database.transaction('chats', mode);
        let outcome;
        const then = (request, step) => {
          request.onsuccess = () => {
            try {
              outcome = step(request.result);
            } catch (error) {
              reject(error);
              transaction.abort();
            }
          };
        };
        const request = operation(transaction.objectStore('chats'), then);
        transaction.oncomplete = () => resolve(request ? request.result : outcome);
        transaction.onabort = () => reject(transaction.error ?? new Error('The transaction was aborted'));
      });
      return { result };
    } catch (error) {
      this.#hasStore = database !== null;
      return { error, failure: !database ? 'kept' : error.name === 'QuotaExceededError' ? 'full' : 'failed' };
    }
  }

  // Rejects where the browser has no database for this page. A database that the browser closed is opened again.
  #open() {
    this.#database = new Promise((resolve, reject) => {
      const request = indexedDB.open(`polargrid${FOLDER}`, 1);
      request.onupgradeneeded = () => request.result.createObjectStore('chats', { keyPath: 'id' });
      request.onsuccess = () => {
        request.result.onclose = () => this.#open();
        resolve(request.result);
      };
      request.onerror = () => reject(request.error);
    });
    this.#database.catch(() => {}); // reported by each use of the database
  }
}

const lockOf = ({ id }) => `polargrid.answer.${id}${FOLDER}`;
