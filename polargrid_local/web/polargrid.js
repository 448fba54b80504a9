// The PolarGrid client for browsers and Node 18+: one ES module without dependencies, camelCase in and out.

const DEFAULT_BASE_URL = 'http://127.0.0.1:8484';
const REGION = { id: 'local', name: 'Local' };

/** Base of every error thrown here. `code`, `type` and `param` are the server's own words, where it gave any. */
export class PolarGridError extends Error {
  constructor(message, { requestId = null, code = null, type = null, param = null, details = null, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = this.constructor.name;
    Object.assign(this, { requestId, code, type, param, details });
  }
}
/** 400: a bad parameter. `details` holds what the server said beyond the message. */
export class ValidationError extends PolarGridError {}
/** 401 and 403. */
export class AuthenticationError extends PolarGridError {}
/** 402. A local server never sends it. */
export class BillingError extends PolarGridError {}
/** 404: an unknown model or path. */
export class NotFoundError extends PolarGridError {}
/** 429: the queue is full. `retryAfter` is in seconds, or null. */
export class RateLimitError extends PolarGridError {
  constructor(message, { retryAfter = null, ...rest } = {}) {
    super(message, rest);
    this.retryAfter = retryAfter;
  }
}
/** 5xx and every other refusal, by `statusCode`. */
export class ServerError extends PolarGridError {
  constructor(message, { statusCode = 500, ...rest } = {}) {
    super(message, rest);
    this.statusCode = statusCode;
  }
}
/** No connection, or one that broke. `cause` is the platform's own error. */
export class NetworkError extends PolarGridError {}
/** Nothing arrived for `timeout` milliseconds. */
export class TimeoutError extends PolarGridError {}

/** True for every error of this module. */
export const isPolarGridError = (error) => error instanceof PolarGridError;

const CLASS_OF_STATUS = {
  400: ValidationError,
  401: AuthenticationError,
  402: BillingError,
  403: AuthenticationError,
  404: NotFoundError,
  429: RateLimitError,
};
const STATUS_OF_TYPE = {
  invalid_request_error: 400,
  authentication_error: 401,
  billing_error: 402,
  not_found_error: 404,
  rate_limit_error: 429,
};

// `body` is the parsed JSON of a refusal, or its text. Without a status (an error inside a stream) its type decides.
function refusal(body, { status, requestId, retryAfter = null }) {
  const error = Object(body?.error);
  const statusCode = status ?? STATUS_OF_TYPE[error.type] ?? 500;
  const words = [error.message, body?.message, body?.detail, body?.error, body].find(
    (value) => value && typeof value === 'string',
  );
  const message = words ?? (body ? JSON.stringify(body) : `HTTP ${statusCode}`);
  const said = Object(body) === body && !body.error ? body : null;
  const { code = null, type = null, param = null, details = said } = error;
  return new (CLASS_OF_STATUS[statusCode] ?? ServerError)(message, {
    requestId,
    code,
    type,
    param,
    details,
    statusCode,
    retryAfter,
  });
}

// The user's own data under these keys: schemas, arguments and maps whose keys are names. Handed over untouched.
const OPAQUE = new Set([
  'parameters',
  'schema',
  'jsonSchema',
  'json_schema',
  'guidedJson',
  'guided_json',
  'json',
  'arguments',
  'metadata',
  'details',
  'logitBias',
  'logit_bias',
  'topLogprobs',
  'top_logprobs',
  'loadingStatus',
  'loading_status',
  'progress',
]);
const toSnake = (key) => key.replace(/[A-Z]/g, (letter) => '_' + letter.toLowerCase());
const toCamel = (key) => key.replace(/_([a-z0-9])/g, (pair, letter, at) => (at ? letter.toUpperCase() : pair));

// Renames keys at every depth. A key that needs no renaming wins over one that is renamed to it.
function rename(value, convert) {
  if (Array.isArray(value)) return value.map((item) => rename(item, convert));
  if (Object.prototype.toString.call(value) !== '[object Object]' || typeof value.toJSON === 'function') return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([key]) => convert(key) === key || !Object.hasOwn(value, convert(key)))
      .map(([key, item]) => [convert(key), OPAQUE.has(key) ? item : rename(item, convert)]),
  );
}

// Server-sent events out of bytes that may be cut anywhere: yields {event, data} per event, {comment} per comment line.
async function* events(body, onBytes) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = '';
  let data = [];
  let event = '';
  let afterCr = false; // a line has ended with CR: an LF that follows belongs to that end
  for (let done = false; !done;) {
    const read = await reader.read();
    done = read.done;
    onBytes();
    let text = decoder.decode(read.value, { stream: !done });
    if (text) {
      const start = afterCr && text.startsWith('\n') ? 1 : 0;
      afterCr = text.endsWith('\r');
      text = text.slice(start);
    }
    const lines = (rest + text + (done ? '\n\n' : '')).split(/\r\n|\n|\r/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === '') {
        if (data.length) yield { event, data: data.join('\n') };
        data = [];
        event = '';
      } else if (line[0] === ':') {
        yield { comment: line.slice(1).trim() };
      } else if (line === 'data' || line.startsWith('data:')) {
        data.push(line.slice(5).replace(/^ /, ''));
      } else if (line.startsWith('event:')) {
        event = line.slice(6).trim();
      }
    }
  }
}

// The abort switch of one call: thrown by the caller's signal, or by `ms` without a byte.
class Watch {
  constructor(ms, signal, requestId) {
    Object.assign(this, { ms, signal, requestId, expired: false, controller: new AbortController() });
    this.abort = () => this.controller.abort();
    if (signal?.aborted) this.abort();
    signal?.addEventListener('abort', this.abort, { once: true });
    this.touch();
  }

  touch() {
    clearTimeout(this.timer);
    if (this.ms > 0 && Number.isFinite(this.ms))
      this.timer = setTimeout(() => {
        this.expired = true;
        this.abort();
      }, this.ms);
  }

  rest() {
    clearTimeout(this.timer);
  }

  close() {
    this.rest();
    this.signal?.removeEventListener('abort', this.abort);
  }

  explain(error) {
    const { requestId } = this;
    if (this.signal?.aborted) return this.signal.reason;
    if (this.expired) return new TimeoutError(`No answer within ${this.ms} ms`, { requestId, cause: error });
    if (error instanceof PolarGridError) return error;
    return new NetworkError(`The connection failed: ${error?.message ?? error}`, { requestId, cause: error });
  }
}

const pause = (ms, signal) =>
  new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', stop);
      resolve();
    }, ms);
    signal?.addEventListener('abort', stop, { once: true });
  });

const environment = (name) => globalThis.process?.env?.[name];
// Where a page got this module from: the folder of polargrid.js, perhaps below a proxy's path; a bundle: its origin.
function ownPlace() {
  if (!/^https?:/.test(import.meta.url ?? '')) return undefined;
  const { origin, pathname } = new URL(import.meta.url);
  return pathname.endsWith('/polargrid.js') ? origin + pathname.slice(0, -'polargrid.js'.length) : origin;
}
const newRequestId = () =>
  `req_${Math.floor(Date.now() / 1000)}_${Math.random().toString(16).slice(2, 11).padEnd(9, '0')}`;
const isText = (value) => typeof value === 'string' && value !== '';
function check(holds, message) {
  if (!holds) throw new ValidationError(message, { code: 'invalid_request', type: 'invalid_request_error' });
}

/**
 * Adds the `delta` of a chunk to `message`, in place: its text, its reasoning, and its tool calls piece by piece. Begun
 * with `{ role: 'assistant', content: null }`, it becomes the message of the plain answer.
 */
export function addDelta(message, delta) {
  for (const name of ['content', 'reasoningContent'])
    if (delta?.[name]) message[name] = (message[name] ?? '') + delta[name];
  for (const { index = 0, id, function: piece } of delta?.toolCalls ?? []) {
    const calls = (message.toolCalls ??= []);
    while (calls.length <= index) calls.push({ id: '', type: 'function', function: { name: '', arguments: '' } });
    const call = calls[index];
    if (id) call.id = id;
    if (piece?.name) call.function.name = piece.name;
    call.function.arguments += piece?.arguments ?? '';
  }
  return message;
}

/**
 * A client. It holds no state between calls: use one for any number of concurrent calls.
 * Every method takes `{ signal, timeout }` as its last argument; streams also `onPrefill({ done, total })`: tokens of
 * a long prompt read so far.
 */
export class PolarGrid {
  #apiKey;

  /**
   * @param options.apiKey     a server without a configured key accepts any or none (Node: POLARGRID_API_KEY)
   * @param options.baseUrl    may have a path; default: the folder this module came from; in Node POLARGRID_BASE_URL or
   *                           http://127.0.0.1:8484
   * @param options.timeout    milliseconds: of a whole plain call, or between two reads of a stream; 0 = none
   * @param options.maxRetries of plain calls after a failed connection, of GETs after a timeout; pauses of 1, 2, 4 s
   * @param options.region     accepted for compatibility; the region served here is always "local"
   */
  constructor({ apiKey, baseUrl, timeout = 30000, maxRetries = 3, debug = false, region = null } = {}) {
    this.#apiKey = apiKey ?? environment('POLARGRID_API_KEY') ?? '';
    check(/^[!-~]*$/.test(this.#apiKey), 'apiKey must be printable ASCII without spaces');
    const base = baseUrl ?? environment('POLARGRID_BASE_URL') ?? ownPlace() ?? DEFAULT_BASE_URL;
    this.baseUrl = base.replace(/\/+$/, '').replace(/\/v1$/, '');
    Object.assign(this, { timeout, maxRetries, debug, region });
  }

  /** As the constructor; remote clients pick a region here. */
  static async create(options) {
    return new this(options);
  }

  getRegionId() {
    return REGION.id;
  }
  getRegionName() {
    return REGION.name;
  }

  /**
   * Yields chunks: `choices[0].delta.content`, `.reasoningContent`, `.toolCalls` (pieces; `addDelta` joins them), and
   * `choices[0].finishReason` once, on the last.
   */
  async *chatCompletionStream(request, options) {
    checkChat(request);
    yield* this.#stream('/v1/chat/completions', { ...request, stream: true }, options);
  }

  async chatCompletion(request, options) {
    checkChat(request);
    return this.#call('POST', '/v1/chat/completions', { ...request, stream: false }, options);
  }

  /** Yields chunks: `choices[0].text`, and `choices[0].finishReason` once, on the last. */
  async *completionStream(request, options) {
    checkPrompt(request);
    const { stream, ...rest } = request;
    yield* this.#stream('/v1/completions/stream', rest, options);
  }

  async completion(request, options) {
    checkPrompt(request);
    const { stream, ...rest } = request;
    return this.#call('POST', '/v1/completions', rest, options);
  }

  /** One prompt in, `{ id, model, content, usage, createdAt, processingTimeMs }` out. */
  async generate({ prompt, ...request }, options) {
    check(isText(prompt), 'prompt must be a non-empty string');
    const started = Date.now();
    const reply = await this.chatCompletion({ ...request, messages: [{ role: 'user', content: prompt }] }, options);
    return {
      id: reply.id,
      model: reply.model,
      content: reply.choices[0]?.message?.content ?? '',
      usage: reply.usage,
      createdAt: new Date(reply.created * 1000).toISOString(),
      processingTimeMs: Date.now() - started,
    };
  }

  async embeddings(request, options) {
    check(request?.input?.length > 0, 'input must be a non-empty string or array');
    return this.#call('POST', '/v1/embeddings', request, options);
  }

  listModels(options) {
    return this.#call('GET', '/v1/models', undefined, options);
  }
  getModelStatus(options) {
    return this.#call('GET', '/v1/models/status', undefined, options);
  }
  unloadAllModels(options) {
    return this.#call('POST', '/v1/models/unload-all', undefined, options);
  }
  getGPUStatus(options) {
    return this.#call('GET', '/v1/gpu/status', undefined, options);
  }
  getGPUMemory(options) {
    return this.#call('GET', '/v1/gpu/memory', undefined, options);
  }
  /** Also what a server in trouble says of itself with a 503: `{ status: 'degraded', ... }`. */
  async health(options) {
    try {
      return await this.#call('GET', '/health', undefined, options);
    } catch (error) {
      if (error.statusCode === 503 && isText(error.details?.status)) return rename(error.details, toCamel);
      throw error;
    }
  }
  getStatus(options) {
    return this.#call('GET', '/v1/status', undefined, options);
  }

  async getModel(id, options) {
    check(isText(id), 'the model id must be a non-empty string');
    return this.#call('GET', `/v1/models/${encodeURIComponent(id)}`, undefined, options);
  }

  /** `request`: `{ modelName, forceReload? }` or the name alone. Answers when the model is loaded. */
  loadModel(request, options) {
    return this.#named('/v1/models/load', request, options);
  }
  unloadModel(request, options) {
    return this.#named('/v1/models/unload', request, options);
  }

  purgeGPU(request = {}, options) {
    return this.#call('POST', '/v1/gpu/purge', { force: false, ...request }, options);
  }

  getUsage({ startDate, endDate } = {}, options) {
    const query = new URLSearchParams(
      Object.entries({ start_date: startDate, end_date: endDate }).filter(([, value]) => value),
    );
    return this.#call('GET', query.size ? `/v1/usage?${query}` : '/v1/usage', undefined, options);
  }

  async #named(path, request, options) {
    const body = typeof request === 'string' ? { modelName: request } : request;
    check(isText(body?.modelName ?? body?.model_name), 'modelName must be a non-empty string');
    return this.#call('POST', path, body, options);
  }

  async #send(method, path, body, watch, accept) {
    const headers = { Accept: accept, 'X-Request-ID': watch.requestId };
    if (method === 'POST') headers['Content-Type'] = 'application/json';
    if (this.#apiKey) headers.Authorization = `Bearer ${this.#apiKey}`;
    const started = Date.now();
    const response = await fetch(this.baseUrl + path, {
      method,
      headers,
      signal: watch.controller.signal,
      cache: 'no-store',
      body,
    });
    if (this.debug)
      console.debug(`[polargrid] ${watch.requestId} ${method} ${path} ${response.status} ${Date.now() - started} ms`);
    if (response.ok) return response;
    const text = await response.text();
    const seconds = parseFloat(response.headers.get('retry-after') ?? '');
    throw refusal(parsed(text) ?? text, {
      status: response.status,
      requestId: watch.requestId,
      retryAfter: Number.isFinite(seconds) ? seconds : null,
    });
  }

  async #call(method, path, request, { signal, timeout = this.timeout } = {}) {
    const body = wire(request);
    for (let attempt = 0; ; attempt++) {
      const watch = new Watch(timeout, signal, newRequestId());
      try {
        const response = await this.#send(method, path, body, watch, 'application/json');
        const reply = parsed(await response.text());
        if (reply === undefined)
          throw new ServerError('The reply is not JSON', { statusCode: response.status, requestId: watch.requestId });
        return rename(reply, toCamel);
      } catch (error) {
        const cause = watch.explain(error);
        // A POST that timed out may still be running over there: sent again it would only make two of it.
        const again = cause instanceof NetworkError || (cause instanceof TimeoutError && method === 'GET');
        if (!again || attempt >= this.maxRetries) throw cause;
      } finally {
        watch.close();
      }
      await pause(1000 * 2 ** attempt, signal);
    }
  }

  async *#stream(path, request, { signal, timeout = this.timeout, onPrefill } = {}) {
    const body = wire(request);
    const watch = new Watch(timeout, signal, newRequestId());
    const { requestId } = watch;
    let ended = false;
    try {
      const response = await this.#send('POST', path, body, watch, 'text/event-stream');
      if (!/^text\/event-stream\b/.test(response.headers.get('content-type') ?? '')) {
        throw new ServerError('The reply is not an event stream', { statusCode: response.status, requestId });
      }
      for await (const { event, data, comment } of events(response.body, () => watch.touch())) {
        if (comment !== undefined) {
          const prefill = /^prefill (\d+) (\d+)$/.exec(comment);
          if (prefill) onPrefill?.({ done: Number(prefill[1]), total: Number(prefill[2]) });
          continue;
        }
        if (data === '[DONE]') return;
        const chunk = parsed(data);
        if (chunk?.error || event === 'error') throw refusal(chunk ?? data, { requestId });
        if (event && event !== 'message' && !chunk?.choices) continue; // of another kind: not for this reader
        if (!Array.isArray(chunk?.choices))
          throw new ServerError('The stream holds something that is not a chunk', { requestId });
        ended ||= chunk.choices.some((choice) => choice.finish_reason);
        watch.rest(); // the consumer may take its time
        yield rename(chunk, toCamel);
        signal?.throwIfAborted(); // more may have arrived already
        watch.touch();
      }
      // Some servers leave [DONE] out; but without a finish reason the answer is not whole.
      if (!ended) throw new NetworkError('The stream broke off before the answer was complete', { requestId });
    } catch (error) {
      throw watch.explain(error);
    } finally {
      watch.close();
      watch.abort(); // also after `break` in the caller's loop: the server then stops generating
    }
  }
}

function wire(request) {
  return request === undefined ? undefined : JSON.stringify(rename(request, toSnake));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function checkChat(request) {
  check(Array.isArray(request?.messages) && request.messages.length > 0, 'messages must be a non-empty array');
}

function checkPrompt(request) {
  const { prompt } = request ?? {};
  check(isText(prompt) || (Array.isArray(prompt) && prompt.length > 0), 'prompt must be a non-empty string or array');
}

// Speech is not served here; the names exist so that such code fails by type, as it would on the wire.
const VOICE = [
  'textToSpeech',
  'transcribe',
  'transcribeAsync',
  'transcribeAndWait',
  'getTranscriptionJob',
  'getTranscriptionResult',
  'translate',
];
for (const name of [...VOICE, 'textToSpeechStream', 'transcribeStream']) {
  const refuse = () => {
    throw new ServerError(`${name} is not supported: this is a text engine`, {
      statusCode: 501,
      code: 'not_supported',
      type: 'server_error',
    });
  };
  const method = name.endsWith('Stream')
    ? async function* () {
        refuse();
      }
    : async () => refuse();
  Object.defineProperty(PolarGrid.prototype, name, { value: method, writable: true, configurable: true });
}

export default PolarGrid;
