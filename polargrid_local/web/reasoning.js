// The reasoning of an answer: which part of the answer it is, and where it is shown, above the text.

import { el } from './dom.js';

/**
 * `{reasoning, text}` of an answer. The server tells them apart where it knows how the model reasons; any model may
 * write <think> before its answer.
 */
export function parted({ content, reasoningContent = '' }) {
  const [all, inline] = /^\s*<think>([\s\S]*?)(?:<\/think>\s*|$)/.exec(content) ?? ['', ''];
  return {
    reasoning: [reasoningContent, inline].map((part) => part.trim()).filter(Boolean).join('\n\n'),
    text: content.slice(all.length),
  };
}

export class Reasoning {
  #text = el('div', { class: 'plain', dir: 'auto' });
  #isChosen = false; // the reader has opened or closed it by hand
  node = el(
    'details',
    { class: 'thought', hidden: true },
    el('summary', { onclick: () => (this.#isChosen = true) }, 'Reasoning'),
    this.#text,
  );

  /** Open while it streams, and closed from then on; unless the reader decides. */
  show(reasoning, isStreaming) {
    this.node.hidden = !reasoning;
    if (this.#text.textContent !== reasoning) this.#text.textContent = reasoning;
    if (!this.#isChosen) this.node.open = isStreaming;
  }
}
