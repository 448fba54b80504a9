// One answer being generated: from the request to the last chunk, its figures, and what an error means to a reader.

import { isWhole, resultsOf } from './chats.js';
import {
  addDelta,
  AuthenticationError,
  NetworkError,
  NotFoundError,
  RateLimitError,
  TimeoutError,
} from './polargrid.js';
import { parted } from './reasoning.js';

const IDLE_MS = 180_000; // longer than any pause of a server that sends keep-alives

/**
 * The messages of a request: the system prompt, then the talk.
 * Empty answers drop out, so neighbours of one role are joined: many templates want turns.
 */
export function turns(chat, upTo) {
  const talk = chat.messages.slice(0, chat.messages.indexOf(upTo)).flatMap((message) => partsOf(chat, message));
  const all = chat.system.trim() ? [{ role: 'system', content: chat.system.trim() }, ...talk] : talk;
  return all.reduce((done, message) => {
    const last = done.at(-1);
    if (last?.role !== message.role || last.role === 'tool') done.push(message);
    else Object.assign(last, message, { content: [last.content, message.content].filter(Boolean).join('\n\n') });
    return done;
  }, []);
}

// What of one message is sent: nothing of an empty one, and of an answer the calls that have a result, with those.
function partsOf(chat, message) {
  const { role, content } = message;
  if (role === 'tool') return []; // sent after the answer that called
  if (role !== 'assistant') return content.trim() ? [{ role, content }] : [];
  const { text, reasoning } = parted(message);
  const results = isWhole(message) ? resultsOf(chat, message) : [];
  const toolCalls = (message.toolCalls ?? []).filter((call, index) => results[index]);
  if (!text.trim() && !toolCalls.length) return [];
  const said = { role, content: text.trim() ? text : null };
  if (reasoning) said.reasoningContent = reasoning;
  if (!toolCalls.length) return [said];
  const given = results.filter(Boolean).map((result, at) => ({
    role: 'tool',
    toolCallId: toolCalls[at].id,
    content: result.content,
  }));
  return [{ ...said, toolCalls }, ...given];
}

export class Answer {
  #abort = new AbortController();

  constructor(chat, message, replaced) {
    // `asked`: the turns as they stand on the screen now; another tab may change them.
    Object.assign(this, { chat, message, asked: turns(chat, message) });
    // The new answer may repeat much of the one that it replaces, and then comes faster.
    const content = replaced ? parted(replaced).text : '';
    if (content.trim()) this.prediction = { type: 'content', content };
  }

  stop() {
    this.#abort.abort();
  }

  /** Fills `message`, calling `onChange()` after every change. Never throws: what goes wrong is in `message.error`. */
  async run(client, models, settings, onChange) {
    const { message } = this;
    const { signal } = this.#abort;
    try {
      message.state = 'loading';
      onChange();
      await models.load(message.model, {
        signal,
        onProgress: (progress) => {
          message.progress = progress;
          onChange();
        },
      });
      await this.#stream(client, settings, onChange);
    } catch (error) {
      if (signal.aborted) {
        message.finish = 'stopped';
      } else {
        message.error = explained(error);
      }
    }
    message.state = undefined;
    message.progress = undefined;
    onChange();
  }

  async #stream(client, { toolChoice, ...settings }, onChange) {
    const { message } = this;
    const started = performance.now();
    let first = 0;
    let last = 0;
    let pieces = 0;
    const measure = (tokens) => ({
      tokens,
      firstMs: first - started,
      perSecond: tokens > 1 && last > first ? (1000 * (tokens - 1)) / (last - first) : null,
    });
    message.state = 'reading';
    message.progress = undefined;
    if (settings.responseFormat) message.isJson = true;
    // A call that was required has been made where its result is the last thing said: now the model may answer.
    const isDue = toolChoice && !(toolChoice === 'required' && this.asked.at(-1).role === 'tool');
    onChange();
    const stream = client.chatCompletionStream(
      {
        ...settings,
        ...(isDue && { toolChoice }),
        reasoningFormat: 'deepseek', // apart from the text, also where the prompt itself opens the block
        model: message.model,
        messages: this.asked,
        ...(this.prediction && { prediction: this.prediction }),
        streamOptions: { includeUsage: true },
      },
      {
        signal: this.#abort.signal,
        timeout: IDLE_MS,
        onPrefill: ({ done, total }) => {
          message.progress = total ? done / total : undefined;
          message.live = { done, total };
          onChange();
        },
      },
    );
    for await (const chunk of stream) {
      const choice = chunk.choices[0];
      const { content, reasoningContent, toolCalls } = choice?.delta ?? {};
      if (content || reasoningContent || toolCalls?.length) {
        last = performance.now();
        first ||= last;
        pieces += 1;
        message.state = 'writing';
        addDelta(message, choice.delta);
        message.live = measure(pieces);
      }
      if (choice?.finishReason) message.finish = choice.finishReason;
      if (chunk.usage) {
        message.stats = { ...measure(chunk.usage.completionTokens), promptTokens: chunk.usage.promptTokens };
      }
      onChange();
    }
    message.stats ??= measure(pieces);
    if (!first) message.stats.firstMs = null;
  }
}

const sentence = (words) => words.replace(/^./u, (first) => first.toUpperCase()) + (/[.!?]$/.test(words) ? '' : '.');

/** `{title, text, key}`: an error in words for the reader; `key` when the API key is to blame. */
export function explained(error) {
  const text = sentence(error?.message ?? String(error));
  if (error instanceof NetworkError)
    return {
      title: 'The server does not answer',
      text: 'It may have stopped. Start it with “polargrid-local serve”, then try again.',
    };
  if (error instanceof TimeoutError)
    return { title: 'The server has gone quiet', text: 'Nothing arrived for a long time. It may be overloaded.' };
  if (error instanceof AuthenticationError) return { title: 'This server wants an API key', text, key: true };
  if (error instanceof RateLimitError) {
    const wait = error.retryAfter ? ` Try again in ${Math.ceil(error.retryAfter)} s.` : '';
    return { title: 'The machine is busy', text: `Others are being answered and the queue is full.${wait}` };
  }
  if (error?.code === 'context_length_exceeded')
    return {
      title: 'This chat no longer fits',
      text: `${text} Start a new chat, or edit an earlier message to shorten it.`,
    };
  if (error instanceof NotFoundError) return { title: 'That model is not here', text };
  return { title: 'Something went wrong', text };
}
