// polargrid.js against scripted bytes: what no well-behaved server can be made to send.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import http from 'node:http';
import { after, before, beforeEach, test } from 'node:test';
import PolarGridDefault, * as sdk from '../../../polargrid_local/web/polargrid.js';

const { PolarGrid } = sdk;
const SSE = { 'Content-Type': 'text/event-stream' };
const JSON_TYPE = { 'Content-Type': 'application/json' };
const message = [{ role: 'user', content: 'hi' }];

let server;
let client;
let asked;
let script; // (request, response, body) => void

before(async () => {
  server = http
    .createServer(async (request, response) => {
      let text = '';
      for await (const piece of request) text += piece;
      const body = text ? JSON.parse(text) : undefined;
      asked.push({ method: request.method, url: request.url, headers: request.headers, body });
      await script(request, response, body);
    })
    .listen(0, '127.0.0.1');
  await once(server, 'listening');
});
after(() => {
  server.closeAllConnections();
  server.close();
});
beforeEach(() => {
  asked = [];
  client = new PolarGrid({ baseUrl: url(), maxRetries: 0, apiKey: 'pg_test' });
});

const url = () => `http://127.0.0.1:${server.address().port}`;
const json =
  (status, body, headers = {}) =>
  (request, response) =>
    response.writeHead(status, { ...JSON_TYPE, ...headers }).end(JSON.stringify(body));
const stream =
  (...parts) =>
  (request, response) =>
    response.writeHead(200, SSE).end(parts.join(''));
const chunk = (content, reason = null) =>
  `data: ${JSON.stringify({ choices: [{ delta: content === undefined ? {} : { content }, finish_reason: reason }] })}`;
const collect = async (iterable) => {
  const all = [];
  for await (const item of iterable) all.push(item);
  return all;
};
const textOf = (chunks) => chunks.map((item) => item.choices[0]?.delta.content ?? '').join('');

test('the class is the default export too', () => assert.equal(PolarGridDefault, PolarGrid));

// Packets merge on their way; here the cuts stay where they are put.
async function withPieces(pieces, run) {
  const { fetch } = globalThis;
  globalThis.fetch = async () =>
    new Response(
      new ReadableStream({
        start(controller) {
          for (const piece of pieces) controller.enqueue(new Uint8Array(piece));
          controller.close();
        },
      }),
      { headers: SSE },
    );
  try {
    return await run();
  } finally {
    globalThis.fetch = fetch;
  }
}

test('a stream cut at every byte reads the same', async () => {
  const words = ['Grüße, ', '世界 ', '👩‍👩‍👧 ', 'a\u2028b\u0085c', '', ' data: x', '\r\n\n'];
  for (const end of ['\n\n', '\r\n\r\n', '\r\r']) {
    const eol = end.slice(0, end.length / 2);
    const twoLines = chunk('two').replace(/,/, `,${eol}data: `);
    const bytes = Buffer.from(
      [
        '\ufeff: hello',
        twoLines,
        ...words.map((word) => chunk(word)),
        ':',
        'event: ping\nid: 7\nretry: 1',
        chunk(undefined, 'stop'),
        'data: [DONE]',
        'data: junk after the end',
        '',
      ].join(end),
    );
    for (let cut = 0; cut <= bytes.length; cut++) {
      const chunks = await withPieces([bytes.subarray(0, cut), bytes.subarray(cut)], () =>
        collect(client.chatCompletionStream({ messages: message })),
      );
      assert.equal(textOf(chunks), `two${words.join('')}`, `cut at ${cut} of ${JSON.stringify(end)}`);
      assert.equal(chunks.at(-1).choices[0].finishReason, 'stop');
    }
  }
});

test('a stream one byte at a time, data over several lines, no final blank line', async () => {
  const whole = chunk('é').slice('data: '.length);
  const cut = whole.indexOf(',') + 1;
  const bytes = Buffer.from(`data:${whole.slice(0, cut)}\ndata: ${whole.slice(cut)}\n\n${chunk(undefined, 'length')}`);
  const chunks = await withPieces(
    Array.from(bytes, (byte) => [byte]),
    () => collect(client.chatCompletionStream({ messages: message })),
  );
  assert.equal(textOf(chunks), 'é');
  assert.equal(chunks.at(-1).choices[0].finishReason, 'length');
});

test('a refusal inside a stream throws after what came before', async () => {
  script = stream(
    `${chunk('one')}\n\n`,
    'data: {"detail":"NaN","error":{"message":"NaN","type":"server_error","code":"numeric_error","param":null}}\n\n',
  );
  const seen = [];
  await assert.rejects(
    async () => {
      for await (const item of client.chatCompletionStream({ messages: message }))
        seen.push(item.choices[0].delta.content);
    },
    (thrown) =>
      thrown instanceof sdk.ServerError &&
      thrown.message === 'NaN' &&
      thrown.code === 'numeric_error' &&
      sdk.isPolarGridError(thrown),
  );
  assert.deepEqual(seen, ['one']);
  for (const [type, kind] of [
    ['invalid_request_error', sdk.ValidationError],
    ['rate_limit_error', sdk.RateLimitError],
    ['unheard_of', sdk.ServerError],
  ]) {
    script = stream(`data: {"error":{"message":"m","type":"${type}"}}\n\n`);
    await assert.rejects(collect(client.chatCompletionStream({ messages: message })), kind);
  }
});

test('a consumer may take longer than the timeout', async (context) => {
  const pieces = [...'abc'].map((letter) => Buffer.from(`${chunk(letter)}\n\n`));
  let text = '';
  context.mock.timers.enable({ apis: ['setTimeout'] });
  await withPieces([...pieces, Buffer.from(`${chunk(undefined, 'stop')}\n\n`)], async () => {
    for await (const item of client.chatCompletionStream({ messages: message }, { timeout: 400 })) {
      text += item.choices[0].delta.content ?? '';
      context.mock.timers.tick(500);
    }
  });
  assert.equal(text, 'abc');
});

test('a stream that breaks off never looks complete', async () => {
  for (const parts of [[`${chunk('one')}\n\n`], [`${chunk('one')}\n\ndata: {"choi`], []]) {
    script = stream(...parts);
    await assert.rejects(collect(client.chatCompletionStream({ messages: message })), sdk.PolarGridError);
  }
  script = async (request, response) => {
    response.writeHead(200, SSE);
    response.write(`${chunk('one')}\n\n`);
    setImmediate(() => response.destroy());
  };
  await assert.rejects(collect(client.chatCompletionStream({ messages: message })), sdk.NetworkError);
  script = (request, response) => response.writeHead(200, { 'Content-Type': 'text/html' }).end('<html>');
  await assert.rejects(collect(client.chatCompletionStream({ messages: message })), sdk.ServerError);
  script = stream('data: [1]\n\n');
  await assert.rejects(collect(client.chatCompletionStream({ messages: message })), sdk.ServerError);
});

test('break, return and abort close the connection', async () => {
  const open = () => {
    let closed;
    const gone = new Promise((resolve) => {
      closed = resolve;
    });
    script = (request, response) => {
      response.on('close', closed);
      response.writeHead(200, SSE);
      response.write(`${chunk('one')}\n\n`);
    };
    return gone;
  };
  let gone = open();
  for await (const item of client.chatCompletionStream({ messages: message })) {
    assert.ok(item);
    break;
  }
  await gone;

  gone = open();
  const controller = new AbortController();
  await assert.rejects(
    async () => {
      for await (const item of client.chatCompletionStream({ messages: message }, { signal: controller.signal })) {
        assert.ok(item);
        controller.abort();
      }
    },
    { name: 'AbortError' },
  );
  await gone;

  gone = open();
  const why = new Error('changed my mind');
  const waiting = new AbortController();
  const iterator = client.chatCompletionStream({ messages: message }, { signal: waiting.signal });
  await iterator.next();
  const next = iterator.next();
  waiting.abort(why);
  await assert.rejects(next, (error) => error === why);
  await gone;

  asked = [];
  await assert.rejects(
    collect(client.chatCompletionStream({ messages: message }, { signal: AbortSignal.abort(why) })),
    (error) => error === why,
  );
  assert.equal(asked.length, 0);
});

test('statuses become classes', async () => {
  const table = [
    [400, sdk.ValidationError],
    [401, sdk.AuthenticationError],
    [402, sdk.BillingError],
    [403, sdk.AuthenticationError],
    [404, sdk.NotFoundError],
    [413, sdk.ServerError],
    [429, sdk.RateLimitError],
    [500, sdk.ServerError],
    [501, sdk.ServerError],
    [503, sdk.ServerError],
  ];
  for (const [status, kind] of table) {
    script = json(
      status,
      { detail: 'Words', error: { message: 'Words', type: 't', code: 'c', param: 'p' } },
      { 'Retry-After': '7' },
    );
    for (const call of [() => client.listModels(), () => collect(client.chatCompletionStream({ messages: message }))]) {
      await assert.rejects(call(), (error) => {
        assert.equal(error.constructor, kind);
        assert.equal(error.name, kind.name);
        assert.deepEqual([error.message, error.type, error.code, error.param], ['Words', 't', 'c', 'p']);
        assert.match(error.requestId, /^req_\d+_[0-9a-f]{9}$/);
        if (status === 429) assert.equal(error.retryAfter, 7);
        if (kind === sdk.ServerError) assert.equal(error.statusCode, status);
        return true;
      });
    }
  }
  for (const [body, words] of [
    ['plain words', 'plain words'],
    ['', 'HTTP 502'],
    ['{"detail":[{"loc":1}]}', '{"detail":[{"loc":1}]}'],
    ['{"error":"short"}', 'short'],
    ['null', 'null'],
  ]) {
    script = (request, response) => response.writeHead(502).end(body);
    await assert.rejects(client.health(), { name: 'ServerError', message: words });
  }
});

test('no connection is tried again, a refusal is not', async () => {
  let failures = 1;
  script = (request, response) =>
    failures-- > 0 ? request.socket.destroy() : json(200, { status: 'healthy' })(request, response);
  const patient = new PolarGrid({ baseUrl: url(), maxRetries: 1 });
  assert.deepEqual(await patient.health(), { status: 'healthy' });
  assert.equal(asked.length, 2);
  asked = [];
  script = json(503, {});
  await assert.rejects(patient.health(), sdk.ServerError);
  assert.equal(asked.length, 1);
});

test('a silent server is a TimeoutError; a POST is not sent twice for it', async () => {
  script = () => {};
  const hasty = new PolarGrid({ baseUrl: url(), maxRetries: 2, timeout: 100 });
  await assert.rejects(hasty.chatCompletion({ messages: message }), sdk.TimeoutError);
  assert.equal(asked.length, 1);
  script = (request, response) => {
    response.writeHead(200, SSE);
    response.write(`${chunk('one')}\n\n`);
  };
  await assert.rejects(collect(hasty.chatCompletionStream({ messages: message })), sdk.TimeoutError);
});

test("names are translated both ways, the user's own data never", async () => {
  const parameters = {
    type: 'object',
    properties: { maxTokens: { type: 'integer' }, snake_key: {} },
    additionalProperties: false,
  };
  script = json(200, {
    id: 'x',
    created: 1,
    choices: [
      {
        index: 0,
        finish_reason: 'tool_calls',
        message: { content: null, tool_calls: [{ id: 'c', function: { name: 'f_n', arguments: '{"a_b":1}' } }] },
      },
    ],
    usage: { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3, prompt_tokens_details: { cached_tokens: 4 } },
    pg_metadata: { latency_ms: 5 },
  });
  const request = {
    model: 'm',
    messages: [
      { role: 'assistant', toolCalls: [{ id: 'c', function: { name: 'f', arguments: { innerKey: 1 } } }] },
      { role: 'tool', toolCallId: 'c', content: 'x' },
    ],
    maxTokens: 5,
    topP: 0.5,
    top_k: 3,
    topK: 9,
    minP: 0,
    enableThinking: false,
    tools: [{ type: 'function', function: { name: 'f', parameters } }],
    toolChoice: 'auto',
    logitBias: { 17: 1 },
    responseFormat: { type: 'json_schema', jsonSchema: { name: 'n', schema: parameters } },
    streamOptions: { includeUsage: true },
  };
  const before = structuredClone(request);
  const reply = await client.chatCompletion(request);
  assert.deepEqual(request, before);
  assert.deepEqual(asked[0].body, {
    model: 'm',
    messages: [
      { role: 'assistant', tool_calls: [{ id: 'c', function: { name: 'f', arguments: { innerKey: 1 } } }] },
      { role: 'tool', tool_call_id: 'c', content: 'x' },
    ],
    max_tokens: 5,
    top_p: 0.5,
    top_k: 3,
    min_p: 0,
    enable_thinking: false,
    tools: [{ type: 'function', function: { name: 'f', parameters } }],
    tool_choice: 'auto',
    logit_bias: { 17: 1 },
    response_format: { type: 'json_schema', json_schema: { name: 'n', schema: parameters } },
    stream_options: { include_usage: true },
    stream: false,
  });
  assert.equal(reply.choices[0].finishReason, 'tool_calls');
  assert.equal(reply.choices[0].message.toolCalls[0].function.arguments, '{"a_b":1}');
  assert.deepEqual(reply.usage, {
    promptTokens: 1,
    completionTokens: 2,
    totalTokens: 3,
    promptTokensDetails: { cachedTokens: 4 },
  });
  assert.equal(reply.pgMetadata.latencyMs, 5);
  script = json(200, { loaded: ['a_b'], loading_status: { my_model: 'loading' }, progress: { my_model: 0.5 } });
  assert.deepEqual(await client.getModelStatus(), {
    loaded: ['a_b'],
    loadingStatus: { my_model: 'loading' },
    progress: { my_model: 0.5 },
  });
});

test('schemas are not renamed, whichever field they come in', async () => {
  const schema = { type: 'object', properties: { camelCase: { minLength: 1 }, snake_case: { $ref: '#/$defs/aB' } } };
  script = json(200, { choices: [] });
  await client.chatCompletion({
    messages: message,
    responseFormat: { type: 'json_schema', jsonSchema: { name: 'n', schema, strict: true } },
    jsonSchema: schema,
    guidedJson: schema,
    structuredOutputs: { json: schema },
    functions: [{ name: 'f', parameters: schema }],
    parallelToolCalls: false,
    reasoningFormat: 'deepseek',
  });
  assert.deepEqual(asked[0].body, {
    messages: message,
    response_format: { type: 'json_schema', json_schema: { name: 'n', schema, strict: true } },
    json_schema: schema,
    guided_json: schema,
    structured_outputs: { json: schema },
    functions: [{ name: 'f', parameters: schema }],
    parallel_tool_calls: false,
    reasoning_format: 'deepseek',
    stream: false,
  });
});

test('a streamed message with reasoning and calls is joined to the plain one, and goes back as it is', async () => {
  const call = (index, id, name, given) => ({ index, id, type: 'function', function: { name, arguments: given } });
  const deltas = [
    { role: 'assistant' },
    { reasoning_content: 'I ' },
    { reasoning_content: 'think' },
    { content: 'Well' },
    { content: '!' },
    { tool_calls: [call(0, 'call_0', 'get_it', '')] },
    { tool_calls: [{ index: 0, function: { arguments: '{"a_b":' } }] },
    { tool_calls: [{ index: 0, function: { arguments: '1}' } }, call(1, 'call_1', 'g', '{"c')] },
    { tool_calls: [{ index: 1, function: { arguments: 'D":"_e_f"}' } }] },
    {},
  ];
  const said = (delta, at) =>
    `data: ${JSON.stringify({
      choices: [{ index: 0, delta, finish_reason: at === deltas.length - 1 ? 'tool_calls' : null }],
    })}\n\n`;
  script = stream(...deltas.map(said), 'data: [DONE]\n\n');
  const whole = { role: 'assistant', content: null };
  for await (const item of client.chatCompletionStream({ messages: message }))
    assert.equal(sdk.addDelta(whole, item.choices[0].delta), whole);
  assert.deepEqual(whole, {
    role: 'assistant',
    content: 'Well!',
    reasoningContent: 'I think',
    toolCalls: [
      { id: 'call_0', type: 'function', function: { name: 'get_it', arguments: '{"a_b":1}' } },
      { id: 'call_1', type: 'function', function: { name: 'g', arguments: '{"cD":"_e_f"}' } },
    ],
  });
  assert.deepEqual(sdk.addDelta({ role: 'assistant', content: null }, { toolCalls: whole.toolCalls.slice(0, 1) }), {
    role: 'assistant',
    content: null,
    toolCalls: whole.toolCalls.slice(0, 1),
  });
  script = json(200, { choices: [] });
  await client.chatCompletion({ messages: [...message, whole, { role: 'tool', toolCallId: 'call_0', content: '' }] });
  assert.deepEqual(asked[1].body.messages.slice(1), [
    { role: 'assistant', content: 'Well!', reasoning_content: 'I think', tool_calls: whole.toolCalls },
    { role: 'tool', tool_call_id: 'call_0', content: '' },
  ]);
});

test('paths, verbs and headers', async () => {
  script = json(200, { ok: true });
  const request = { messages: message };
  const table = [
    [() => client.listModels(), 'GET', '/v1/models'],
    [() => client.getModel('org/name_1'), 'GET', '/v1/models/org%2Fname_1'],
    [() => client.getModelStatus(), 'GET', '/v1/models/status'],
    [
      () => client.loadModel({ modelName: 'm', forceReload: true }),
      'POST',
      '/v1/models/load',
      { model_name: 'm', force_reload: true },
    ],
    [() => client.unloadModel('m'), 'POST', '/v1/models/unload', { model_name: 'm' }],
    [() => client.unloadAllModels(), 'POST', '/v1/models/unload-all'],
    [() => client.getGPUStatus(), 'GET', '/v1/gpu/status'],
    [() => client.getGPUMemory(), 'GET', '/v1/gpu/memory'],
    [() => client.purgeGPU(), 'POST', '/v1/gpu/purge', { force: false }],
    [() => client.health(), 'GET', '/health'],
    [() => client.getStatus(), 'GET', '/v1/status'],
    [() => client.getUsage({ startDate: '2026-01-01' }), 'GET', '/v1/usage?start_date=2026-01-01'],
    [() => client.embeddings({ model: 'm', input: ['a'] }), 'POST', '/v1/embeddings', { model: 'm', input: ['a'] }],
    [() => client.completion({ prompt: 'p', stream: true }), 'POST', '/v1/completions', { prompt: 'p' }],
    [() => client.chatCompletion(request), 'POST', '/v1/chat/completions', { messages: message, stream: false }],
  ];
  for (const [call, method, path, body] of table) {
    asked = [];
    await call();
    const [seen] = asked;
    assert.deepEqual([seen.method, seen.url, seen.body], [method, path, body]);
    assert.equal(seen.headers.authorization, 'Bearer pg_test');
    if (method === 'POST') assert.equal(seen.headers['content-type'], 'application/json');
  }
  asked = [];
  script = stream('data: {"choices":[{"text":"x","index":0,"finish_reason":"stop"}]}\n\n');
  assert.equal((await collect(client.completionStream({ prompt: 'p' })))[0].choices[0].text, 'x');
  assert.deepEqual(
    [asked[0].url, asked[0].body, asked[0].headers.accept],
    ['/v1/completions/stream', { prompt: 'p' }, 'text/event-stream'],
  );
});

test('what is wrong at a glance is refused before anything is sent', async () => {
  const calls = [
    () => client.chatCompletion({ messages: [] }),
    () => client.chatCompletion(),
    () => collect(client.chatCompletionStream({ messages: 'hi' })),
    () => client.completion({ prompt: '' }),
    () => collect(client.completionStream({})),
    () => client.generate({ prompt: 5 }),
    () => client.getModel(''),
    () => client.loadModel({}),
    () => client.embeddings({ input: [] }),
  ];
  for (const call of calls) await assert.rejects(call(), sdk.ValidationError);
  assert.throws(() => new PolarGrid({ apiKey: 'schlüssel' }), sdk.ValidationError);
  assert.equal(asked.length, 0);
});

test('speech fails by type', async () => {
  for (const name of [
    'textToSpeech',
    'transcribe',
    'transcribeAsync',
    'transcribeAndWait',
    'getTranscriptionJob',
    'getTranscriptionResult',
    'translate',
  ]) {
    await assert.rejects(client[name]({}), { name: 'ServerError', statusCode: 501, code: 'not_supported' });
  }
  for (const name of ['textToSpeechStream', 'transcribeStream'])
    await assert.rejects(collect(client[name]({})), { statusCode: 501 });
});

test('prefill progress and keep-alives are not chunks', async () => {
  const seen = [];
  script = stream(': prefill 512 2048\n\n: ping\n\n', `${chunk('a', 'stop')}\n\ndata: [DONE]\n\n`);
  const chunks = await collect(
    client.chatCompletionStream({ messages: message }, { onPrefill: (progress) => seen.push(progress) }),
  );
  assert.deepEqual([chunks.length, seen], [1, [{ done: 512, total: 2048 }]]);
});

test('generate, base addresses, region', async () => {
  script = json(200, { id: 'i', model: 'm', created: 0, choices: [{ message: { content: 'text' } }], usage: {} });
  const reply = await (await PolarGrid.create({ baseUrl: `${url()}/v1/` })).generate({ prompt: 'p', maxTokens: 3 });
  assert.deepEqual(
    [reply.content, reply.createdAt, asked[0].body.max_tokens, asked[0].url],
    ['text', '1970-01-01T00:00:00.000Z', 3, '/v1/chat/completions'],
  );
  assert.equal(new PolarGrid().baseUrl, process.env.POLARGRID_BASE_URL ?? 'http://127.0.0.1:8484');
  assert.deepEqual([client.getRegionId(), client.getRegionName()], ['local', 'Local']);
});

test('lines may end with CR alone, and are read as soon as they have arrived', async () => {
  let go;
  const gate = new Promise((resolve) => {
    go = resolve;
  });
  script = async (request, response) => {
    response.writeHead(200, SSE);
    response.write(`${chunk('one')}\r\r`);
    await gate;
    response.write('\n'); // the end of a CRLF, or nothing
    response.end(`${chunk('two', 'stop')}\r\rdata: [DONE]\r\r`);
  };
  const stream = client.chatCompletionStream({ messages: message });
  assert.equal((await stream.next()).value.choices[0].delta.content, 'one');
  go();
  assert.equal(textOf(await collect(stream)), 'two');
});

test('an event named error throws whatever it holds; events of other names are passed over', async () => {
  for (const [data, words] of [
    ['{"error":{"message":"m","type":"server_error"}}', 'm'],
    ['{"message":"plain"}', 'plain'],
    ['not JSON', 'not JSON'],
  ]) {
    script = stream(`event: ping\ndata: {}\n\n${chunk('one')}\n\n`, `event: error\ndata: ${data}\n\ndata: [DONE]\n\n`);
    const seen = [];
    await assert.rejects(
      async () => {
        for await (const item of client.chatCompletionStream({ messages: message })) seen.push(textOf([item]));
      },
      { name: 'ServerError', message: words },
    );
    assert.deepEqual(seen, ['one']);
  }
  script = stream(`event: message\n${chunk('one', 'stop')}\n\n`, 'data: [DONE]\n\n');
  assert.equal(textOf(await collect(client.chatCompletionStream({ messages: message }))), 'one');
});

test('after an abort nothing more is read, not even what had arrived already', async () => {
  const controller = new AbortController();
  const seen = [];
  const pieces = [Buffer.from(`${chunk('one')}\n\n${chunk('two')}\n\n${chunk('three', 'stop')}\n\ndata: [DONE]\n\n`)];
  await assert.rejects(
    withPieces(pieces, async () => {
      for await (const item of client.chatCompletionStream({ messages: message }, { signal: controller.signal })) {
        seen.push(textOf([item]));
        controller.abort();
      }
    }),
    { name: 'AbortError' },
  );
  assert.deepEqual(seen, ['one']);
});

test('a base address may have a path', async () => {
  for (const [base, path] of [
    ['/llm', '/llm/v1/models'],
    ['/llm/', '/llm/v1/models'],
    ['/a/b/v1', '/a/b/v1/models'],
    ['/a/b/v1/', '/a/b/v1/models'],
  ]) {
    asked = [];
    script = json(200, { data: [] });
    await new PolarGrid({ baseUrl: url() + base }).listModels();
    assert.equal(asked[0].url, path);
  }
});

test('what a server in trouble says of itself is an answer', async () => {
  script = json(503, { status: 'degraded', models: { some_model: 'failed' }, queue_depth: 3 });
  assert.deepEqual((await client.health()).status, 'degraded');
  assert.equal((await client.health()).queueDepth, 3);
  await assert.rejects(client.getStatus(), { name: 'ServerError', statusCode: 503 });
  script = json(503, { detail: 'no' });
  await assert.rejects(client.health(), { name: 'ServerError', message: 'no' });
  script = (request, response) => response.writeHead(502).end('<html>');
  await assert.rejects(client.health(), { name: 'ServerError', statusCode: 502 });
});

test('tokens as names of probabilities are not renamed', async () => {
  const top = [{ get_name: -0.1, ' the_end': -2 }];
  script = json(200, { choices: [{ text: 'x', logprobs: { top_logprobs: top, text_offset: [0] } }] });
  const { logprobs } = (await client.completion({ prompt: 'p' })).choices[0];
  assert.deepEqual(logprobs, { topLogprobs: top, textOffset: [0] });
});
