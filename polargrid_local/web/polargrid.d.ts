// Types of polargrid.js.

export interface CallOptions {
  signal?: AbortSignal;
  /** Milliseconds; 0 = none. */
  timeout?: number;
}
export interface StreamOptions extends CallOptions {
  /** Tokens of the prompt read so far, while a long prompt is being read. */
  onPrefill?(progress: { done: number; total: number }): void;
}
export interface PolarGridOptions {
  apiKey?: string;
  /** May have a path. Default: the folder that polargrid.js came from. */
  baseUrl?: string;
  timeout?: number;
  maxRetries?: number;
  debug?: boolean;
  region?: string | null;
}

export type FinishReason = 'stop' | 'length' | 'tool_calls' | 'content_filter';
export interface Usage {
  promptTokens: number;
  completionTokens: number;
  totalTokens: number;
  promptTokensDetails?: { cachedTokens: number };
  /** Of a request with a `prediction`. */
  completionTokensDetails?: { acceptedPredictionTokens: number; rejectedPredictionTokens: number };
}
export interface ToolCall {
  id: string;
  type: 'function';
  function: { name: string; arguments: string };
}
/** A piece of a streamed call. The first of each `index` has its id and its whole name. */
export interface ToolCallDelta {
  index: number;
  id?: string;
  type?: 'function';
  function?: { name?: string; arguments?: string };
}
export interface Tool {
  type: 'function';
  function: { name: string; description?: string; parameters?: object; strict?: boolean };
}
export type ContentPart =
  { type: 'text'; text: string } | { type: 'image_url'; imageUrl: { url: string; detail?: 'auto' | 'low' | 'high' } };
export interface Message {
  role: 'system' | 'developer' | 'user' | 'assistant' | 'tool';
  content?: string | ContentPart[] | null;
  name?: string;
  reasoningContent?: string;
  toolCalls?: ToolCall[];
  toolCallId?: string;
}
/** What a model says. `content` is null where there are calls and no text. */
export interface AnswerMessage {
  role: 'assistant';
  content: string | null;
  reasoningContent?: string;
  toolCalls?: ToolCall[];
}
export interface AnswerDelta {
  role?: 'assistant';
  content?: string | null;
  reasoningContent?: string;
  toolCalls?: ToolCallDelta[];
}
export interface Sampling {
  model?: string;
  maxTokens?: number;
  temperature?: number;
  topP?: number;
  topK?: number;
  minP?: number;
  frequencyPenalty?: number;
  presencePenalty?: number;
  repetitionPenalty?: number;
  seed?: number;
  stop?: string | string[];
  /** Text that the answer may repeat: then it comes faster. It changes no answer. */
  prediction?: { type: 'content'; content: string | { type: 'text'; text: string }[] };
  user?: string;
  streamOptions?: { includeUsage?: boolean };
  [key: string]: unknown;
}
export interface ChatCompletionRequest extends Sampling {
  messages: Message[];
  tools?: Tool[];
  toolChoice?: 'none' | 'auto' | 'required' | { type: 'function'; function: { name: string } };
  parallelToolCalls?: boolean;
  /** Where reasoning goes: `none` leaves it in the content, between <think> marks; `deepseek`: `reasoningContent`. */
  reasoningFormat?: 'none' | 'deepseek';
  responseFormat?: {
    type: 'text' | 'json_object' | 'json_schema';
    jsonSchema?: { name?: string; schema: object; strict?: boolean };
  };
  enableThinking?: boolean;
}
export interface CompletionRequest extends Sampling {
  prompt: string | string[];
}
export interface GenerateRequest extends Sampling {
  prompt: string;
}

interface Reply<Choice> {
  id: string;
  object: string;
  created: number;
  model: string;
  choices: Choice[];
}
interface Metadata {
  region: string;
  latencyMs?: number | null;
  modelLoadTimeMs?: number | null;
  queueTimeMs?: number | null;
  inferenceTimeMs?: number | null;
}
export interface ChatCompletion extends Reply<{
  index: number;
  message: AnswerMessage;
  finishReason: FinishReason;
}> {
  usage: Usage;
  pgMetadata?: Metadata;
}
export interface ChatCompletionChunk extends Reply<{
  index: number;
  delta: AnswerDelta;
  finishReason: FinishReason | null;
}> {
  usage?: Usage;
}
export interface Completion extends Reply<{ index: number; text: string; finishReason: FinishReason }> {
  usage: Usage;
  pgMetadata?: Metadata;
}
export interface CompletionChunk extends Reply<{ index: number; text: string; finishReason: FinishReason | null }> {
  usage?: Usage;
}
export interface GenerateResponse {
  id: string;
  model: string;
  content: string;
  usage: Usage;
  createdAt: string;
  processingTimeMs: number;
}
export interface Model {
  id: string;
  object: 'model';
  created: number;
  ownedBy: string;
  root: string;
}
export type ModelState = 'loaded' | 'loading' | 'unloaded' | 'failed';

/** Adds a chunk's delta to `message`, in place, and returns it: text, reasoning, and tool calls piece by piece. */
export function addDelta<Kind extends Partial<AnswerMessage>>(message: Kind, delta?: AnswerDelta): Kind;

export class PolarGrid {
  constructor(options?: PolarGridOptions);
  static create(options?: PolarGridOptions): Promise<PolarGrid>;
  readonly baseUrl: string;
  getRegionId(): string;
  getRegionName(): string;
  chatCompletionStream(
    request: ChatCompletionRequest,
    options?: StreamOptions,
  ): AsyncGenerator<ChatCompletionChunk, void>;
  chatCompletion(request: ChatCompletionRequest, options?: CallOptions): Promise<ChatCompletion>;
  completionStream(request: CompletionRequest, options?: StreamOptions): AsyncGenerator<CompletionChunk, void>;
  completion(request: CompletionRequest, options?: CallOptions): Promise<Completion>;
  generate(request: GenerateRequest, options?: CallOptions): Promise<GenerateResponse>;
  embeddings(
    request: { model?: string; input: string | string[]; user?: string },
    options?: CallOptions,
  ): Promise<{
    object: 'list';
    data: { object: 'embedding'; index: number; embedding: number[] }[];
    model: string;
    usage: { promptTokens: number; totalTokens: number };
  }>;
  listModels(options?: CallOptions): Promise<{ object: 'list'; data: Model[] }>;
  getModel(id: string, options?: CallOptions): Promise<Model>;
  loadModel(
    request: string | { modelName: string; forceReload?: boolean },
    options?: CallOptions,
  ): Promise<{ status: 'success' | 'loading' | 'failed'; model: string; forceReload: boolean; message: string }>;
  unloadModel(
    request: string | { modelName: string },
    options?: CallOptions,
  ): Promise<{ status: 'success' | 'failed'; model: string; message: string }>;
  unloadAllModels(
    options?: CallOptions,
  ): Promise<{
    status: 'success' | 'partial' | 'failed';
    unloadedModels: string[];
    errors: unknown[];
    totalUnloaded: number;
  }>;
  getModelStatus(
    options?: CallOptions,
  ): Promise<{
    loaded: string[];
    loadingStatus: Record<string, ModelState>;
    repository: string;
    progress?: Record<string, number>;
  }>;
  getGPUStatus(options?: CallOptions): Promise<any>;
  getGPUMemory(options?: CallOptions): Promise<any>;
  purgeGPU(request?: { force?: boolean }, options?: CallOptions): Promise<any>;
  /** Also while the server is degraded. */
  health(options?: CallOptions): Promise<{ status: string; [key: string]: any }>;
  getStatus(options?: CallOptions): Promise<any>;
  getUsage(range?: { startDate?: string; endDate?: string }, options?: CallOptions): Promise<any>;
}
export default PolarGrid;

export class PolarGridError extends Error {
  requestId: string | null;
  code: string | null;
  type: string | null;
  param: string | null;
  details: unknown;
}
export class ValidationError extends PolarGridError {}
export class AuthenticationError extends PolarGridError {}
export class BillingError extends PolarGridError {}
export class NotFoundError extends PolarGridError {}
export class RateLimitError extends PolarGridError {
  retryAfter: number | null;
}
export class ServerError extends PolarGridError {
  statusCode: number;
}
export class NetworkError extends PolarGridError {}
export class TimeoutError extends PolarGridError {}
export function isPolarGridError(error: unknown): error is PolarGridError;
