// The talk on the screen: messages and their actions, the growing answer, scrolling that follows while the reader does.

import { byId, copyButton, el, icon } from './dom.js';
import { showMarkdown } from './markdown.js';

const NEAR_BOTTOM_PX = 80;
const LONG_CHARS = 1000;
const IDEAS = [
  'Explain how a prefix cache saves work, in simple words',
  'Write a Python function that merges two sorted lists',
  'Draft a short, friendly note to move a meeting to Friday',
];

export class Transcript {
  #root = byId('transcript');
  #scroller = byId('scroller');
  #latest = byId('latest');
  #shown = new Map(); // message id -> its parts
  #following = true;
  #late = new Set(); // messages that changed since the last frame
  #actions;

  /** `actions`: {regenerate(message), edit(message, text), useIdea(text), askKey()} */
  constructor(actions) {
    this.#actions = actions;
    this.#scroller.addEventListener(
      'scroll',
      () => {
        const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
        this.#following = scrollHeight - scrollTop - clientHeight < NEAR_BOTTOM_PX;
        this.#latest.hidden = this.#following;
      },
      { passive: true },
    );
    this.#latest.addEventListener('click', () => this.follow());
    new ResizeObserver(() => this.#keepUp()).observe(this.#root);
  }

  /** Shows a whole chat. */
  show(chat) {
    this.#shown.clear();
    this.#root.replaceChildren(
      ...(chat.messages.length ? chat.messages.map((message) => this.#add(message)) : [this.#welcome()]),
    );
    this.follow();
  }

  /** Brings the screen up to date with a chat that changed elsewhere; what did not change keeps its elements. */
  sync(chat) {
    const kept = new Set(chat.messages.map(({ id }) => id));
    if (!kept.size || !this.#shown.size) {
      if (kept.size || this.#shown.size) this.show(chat);
      return;
    }
    for (const [id, parts] of this.#shown) {
      parts.gone = !kept.has(id);
      if (parts.gone && !parts.article.classList.contains('editing')) this.#drop(id); // an open editor stays
    }
    const goneOnes = new Set([...this.#shown.values()].filter(({ gone }) => gone).map(({ article }) => article));
    let there = this.#root.firstElementChild;
    for (const message of chat.messages) {
      const parts = this.#shown.get(message.id);
      const article = parts?.article ?? this.#add(message);
      while (goneOnes.has(there)) there = there.nextElementSibling;
      if (there === article) there = there.nextElementSibling;
      else this.#root.insertBefore(article, there);
      if (parts && message.role === 'assistant' && parts.seen !== JSON.stringify(message)) this.#fill(message, parts);
    }
    this.#keepUp();
  }

  #drop(id) {
    this.#shown.get(id).article.remove();
    this.#shown.delete(id);
  }

  /** Shows what changed in one message, at most once per frame. */
  update(message) {
    if (!this.#shown.has(message.id)) return;
    if (!this.#late.size) {
      // A hidden page draws no frames, but its answers go on.
      if (document.hidden) setTimeout(() => this.#flush(), 250);
      else requestAnimationFrame(() => this.#flush());
    }
    this.#late.add(message);
  }

  follow() {
    this.#following = true;
    this.#keepUp();
  }

  /** Opens the editor of a message of the user. */
  edit(message) {
    const parts = this.#shown.get(message.id) ?? {};
    const { article, body } = parts;
    if (!article || article.querySelector('form')) return;
    const area = el('textarea', {
      'aria-label': 'Edit the message',
      dir: 'auto',
      rows: Math.min(12, message.content.split('\n').length + 1),
    });
    area.value = message.content;
    const close = () => {
      if (parts.gone) return this.#drop(message.id);
      form.replaceWith(body);
      article.classList.remove('editing');
      article.querySelector('.edit')?.focus();
    };
    const form = el(
      'form',
      {
        class: 'editor',
        onsubmit: (event) => {
          event.preventDefault();
          if (area.value.trim()) this.#actions.edit(message, area.value);
        },
        onkeydown: (event) => {
          if (event.key === 'Escape') {
            event.preventDefault();
            event.stopPropagation();
            close();
          }
          if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            form.requestSubmit();
          }
        },
      },
      area,
      el(
        'div',
        { class: 'actions' },
        el('small', {}, 'What follows this message is replaced.'),
        el('span', { class: 'spacer' }),
        el('button', { type: 'button', onclick: close }, 'Cancel'),
        el('button', { type: 'submit', class: 'primary' }, 'Send'),
      ),
    );
    body.replaceWith(form);
    article.classList.add('editing');
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  #flush() {
    const messages = [...this.#late];
    this.#late.clear();
    for (const message of messages) {
      const parts = this.#shown.get(message.id);
      if (parts) this.#fill(message, parts);
    }
  }

  #keepUp() {
    if (this.#following) this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  #welcome() {
    return el(
      'section',
      { class: 'welcome' },
      el('h2', {}, 'What is on your mind?'),
      el('p', {}, 'The model runs on this machine. What you write stays here.'),
      el(
        'ul',
        {},
        ...IDEAS.map((text) =>
          el('li', {}, el('button', { type: 'button', onclick: () => this.#actions.useIdea(text) }, text)),
        ),
      ),
    );
  }

  #add(message) {
    const mine = message.role === 'user';
    const body = el('div', { class: mine ? 'bubble' : 'body', dir: mine ? 'auto' : null });
    const status = el('div', { class: 'status' });
    const article = el(
      'article',
      { 'class': 'message', 'data-role': message.role, 'aria-label': mine ? 'You' : 'Answer' },
      el('h2', { class: 'sr-only' }, mine ? 'You' : 'Answer'),
      body,
      !mine && status,
      el('footer', {}),
    );
    const parts = { article, body, status, footer: article.lastElementChild };
    this.#shown.set(message.id, parts);
    if (mine) {
      body.textContent = message.content;
      if (message.content.length > LONG_CHARS) body.tabIndex = 0; // it scrolls within itself
      parts.footer.append(
        action('edit', 'Edit', () => this.edit(message), 'edit'),
        copyButton('Copy the message', () => message.content),
      );
    } else {
      this.#fill(message, parts);
    }
    return article;
  }

  #fill(message, parts) {
    const { article, body, status, footer } = parts;
    parts.seen = JSON.stringify(message);
    article.setAttribute('aria-busy', String(Boolean(message.state)));
    showMarkdown(body, message.content);
    status.replaceChildren(...this.#statusOf(message));
    const state = message.state ? 'busy' : 'done';
    if (footer.dataset.state !== state || state === 'done') {
      footer.replaceChildren(
        ...(message.state
          ? []
          : [
              message.content && copyButton('Copy the answer', () => message.content),
              action('again', 'Answer again', () => this.#actions.regenerate(message)),
              figures(message),
            ].filter(Boolean)),
      );
    }
    footer.dataset.state = state;
  }

  #statusOf(message) {
    const { state, progress, live, error, finish } = message;
    if (error) {
      const [label, onclick] = error.key
        ? ['Enter the key', () => this.#actions.askKey()]
        : ['Try again', () => this.#actions.regenerate(message)];
      return [
        el(
          'div',
          { class: 'error', role: 'alert' },
          el('b', {}, error.title),
          el('span', {}, error.text),
          el('button', { type: 'button', class: 'link', onclick }, label),
        ),
      ];
    }
    if (state === 'loading') return [waiting('Loading the model', progress)];
    if (state === 'reading')
      return [
        waiting(
          live?.total
            ? `Reading the prompt, ${live.done.toLocaleString()} of ${live.total.toLocaleString()} tokens`
            : 'Thinking',
          progress,
        ),
      ];
    if (state === 'elsewhere') return [waiting('Another tab is writing this answer')];
    if (state === 'writing') return [el('small', { class: 'figures' }, `${tokens(live)}${speed(live)}`)];
    const why = {
      stopped: 'You stopped this answer.',
      interrupted: 'This answer was interrupted.', // stored without an end, and no tab is writing it
      content_filter: 'The content filter ended this answer.',
      length: 'The answer was cut: it reached the longest length set, or the end of what the model can hold.',
    }[finish ?? 'interrupted'];
    return why ? [el('small', { class: 'why' }, why)] : [];
  }
}

const action = (name, label, onclick, extra = '') =>
  el('button', { type: 'button', class: `quiet ${extra}`, 'aria-label': label, title: label, onclick }, icon(name));

const waiting = (text, progress) =>
  el(
    'div',
    { class: 'waiting' },
    el('span', {}, text),
    progress === undefined
      ? el('i', { 'aria-hidden': 'true' })
      : el('progress', { max: '1', value: String(progress), 'aria-label': text }),
  );

const tokens = ({ tokens: n }) => `${n.toLocaleString()} ${n === 1 ? 'token' : 'tokens'}`;
const speed = ({ perSecond }) => (perSecond ? ` · ${perSecond.toFixed(perSecond < 10 ? 1 : 0)} per second` : '');

function figures({ model, stats }) {
  if (!stats?.tokens) return null;
  const facts = [
    `${tokens(stats)}${speed(stats)}`,
    stats.firstMs !== null && `first after ${(stats.firstMs / 1000).toFixed(2)} s`,
    stats.promptTokens && `prompt ${stats.promptTokens.toLocaleString()}`,
    model,
  ];
  return el('small', { class: 'figures' }, facts.filter(Boolean).join(' · '));
}
