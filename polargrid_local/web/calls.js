// The calls of tools in an answer: a block each, with its arguments as they come, and a field for its result.

import { action, el } from './dom.js';
import { editor } from './editor.js';
import { pretty } from './json.js';
import { codeBlock, setCode } from './markdown.js';

const NOTES = {
  cut: 'This call is not whole. The model will not see it again.',
  passed: 'No result was given. The model will not see this call again.',
};

export class Calls {
  node = el('div', { class: 'calls' });
  #blocks = [];
  #onResult;

  /** `onResult(index, text)` gets what the reader typed as the result of a call. */
  constructor(onResult) {
    this.#onResult = onResult;
  }

  /**
   * Shows calls and the texts of their results; undefined where there is none. `state` says what is true of the calls
   * without one: "coming", "cut" (no whole call), "wanted" (the model waits), "passed" (the talk went on without).
   */
  show(calls, results, state) {
    for (const { node } of this.#blocks.splice(calls.length)) node.remove();
    calls.forEach(({ function: { name, arguments: text } }, index) => {
      const block = (this.#blocks[index] ??= this.#add());
      block.node.setAttribute('aria-label', `Call of ${name}`);
      setCode(block.code, pretty(text) ?? text, name);
      this.#showResult(block, { name, index, state, result: results[index] });
    });
  }

  #add() {
    const code = codeBlock('', '', 'Arguments');
    const foot = el('div', { class: 'result' });
    const node = el('div', { class: 'call', role: 'group' }, code, foot);
    this.node.append(node);
    return { node, code, foot };
  }

  // What is typed, or open, stays until something else is true of the call.
  #showResult(block, call) {
    const seen = JSON.stringify([call.state, call.result ?? null]);
    if (block.seen === seen) return;
    block.seen = seen;
    const { name, state, result } = call;
    const edit = (label) => action('edit', label, () => this.#edit(block, call, label));
    if (result !== undefined)
      block.foot.replaceChildren(
        codeBlock(pretty(result) ?? result, 'Result', 'Result', edit(`Edit the result of ${name}`)),
      );
    else if (state === 'wanted') block.foot.replaceChildren(this.#form(call));
    else if (state === 'passed')
      block.foot.replaceChildren(el('small', { class: 'why' }, NOTES.passed), edit(`Give a result of ${name}`));
    else block.foot.replaceChildren(NOTES[state] ? el('small', { class: 'why' }, NOTES[state]) : '');
  }

  #edit(block, call, label) {
    const close = () => {
      block.seen = null;
      this.#showResult(block, call);
      block.foot.querySelector(`[aria-label="${CSS.escape(label)}"]`)?.focus();
    };
    block.foot.replaceChildren(this.#form(call, close));
    block.foot.querySelector('textarea').focus();
  }

  #form({ name, index, result = '' }, onCancel) {
    return editor({
      label: `Result of ${name}`,
      text: result,
      placeholder: `What ${name} returns`,
      note: onCancel && 'What follows this answer is replaced.',
      send: 'Send the result',
      onCancel,
      onSend: (text) => {
        this.#onResult(index, text);
        this.node.querySelector('.call textarea')?.focus(); // the next one that is wanted
      },
    });
  }
}
