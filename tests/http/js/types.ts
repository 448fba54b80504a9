// Compiled, never run: the declarations of polargrid.js say what the examples need.
import PolarGridDefault, {
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
  const { usage } = await client.chatCompletion({ messages: [{ role: 'user', content: 'x' }] });
  text += usage.promptTokens;
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

export const client: Promise<PolarGridDefault> = PolarGrid.create({ baseUrl: 'http://127.0.0.1:8484', timeout: 1000 });
