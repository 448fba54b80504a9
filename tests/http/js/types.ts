// Compiled, never run: the declarations of polargrid.js say what the examples need.
import PolarGridDefault, {
  addDelta,
  type AnswerMessage,
  isPolarGridError,
  PolarGrid,
  RateLimitError,
} from '../../../polargrid_local/web/polargrid.js';

export async function story(client: PolarGrid, signal: AbortSignal): Promise<string> {
  let text = '';
  for await (const chunk of client.chatCompletionStream(
    {
      model: 'llama-3.1-8b',
      messages: [{ role: 'user', content: 'Tell me a story' }],
      maxTokens: 500,
      tools: [{ type: 'function', function: { name: 'f', parameters: { type: 'object' } } }],
    },
    {
      signal,
      onPrefill: ({ done, total }) => {
        text += done / total;
      },
    },
  )) {
    text += chunk.choices[0]?.delta?.content ?? '';
    if (chunk.choices[0]?.finishReason === 'length') break;
    // @ts-expect-error wire names are not JavaScript names
    chunk.choices[0].finish_reason;
  }
  for await (const chunk of client.completionStream({ prompt: 'x', maxTokens: 5 })) text += chunk.choices[0].text;
  const { usage } = await client.chatCompletion({
    messages: [{ role: 'user', content: 'x' }],
    prediction: { type: 'content', content: [{ type: 'text', text: 'x' }] },
  });
  text += usage.promptTokens + (usage.completionTokensDetails?.acceptedPredictionTokens ?? 0);
  try {
    await client.loadModel({ modelName: 'm' });
  } catch (error) {
    if (error instanceof RateLimitError) text += error.retryAfter;
    else if (isPolarGridError(error)) text += error.requestId;
  }
  // @ts-expect-error messages are required
  await client.chatCompletion({ model: 'm' });
  return text;
}

export async function called(client: PolarGrid): Promise<AnswerMessage> {
  const message: AnswerMessage = { role: 'assistant', content: null };
  const stream = client.chatCompletionStream({
    messages: [{ role: 'user', content: 'x' }],
    tools: [{ type: 'function', function: { name: 'f', parameters: { type: 'object' }, strict: true } }],
    toolChoice: { type: 'function', function: { name: 'f' } },
    parallelToolCalls: false,
    reasoningFormat: 'deepseek',
  });
  for await (const chunk of stream) {
    const piece: string | undefined = chunk.choices[0]?.delta.toolCalls?.[0].function?.arguments;
    addDelta(message, chunk.choices[0]?.delta);
    if (piece) console.log(piece, message.toolCalls?.[0].function.name, message.reasoningContent);
  }
  const results = (message.toolCalls ?? []).map(({ id }) => ({ role: 'tool' as const, toolCallId: id, content: '' }));
  const reply = await client.chatCompletion({ messages: [{ role: 'user', content: 'x' }, message, ...results] });
  // @ts-expect-error wire names are not JavaScript names
  reply.choices[0].message.tool_calls;
  // @ts-expect-error there is no such choice
  await client.chatCompletion({ messages: [], toolChoice: 'sometimes' });
  return reply.choices[0].message;
}

export const client: Promise<PolarGridDefault> = PolarGrid.create({ baseUrl: 'http://127.0.0.1:8484', timeout: 1000 });
