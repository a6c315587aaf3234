/**
 * The native engine as TypeScript sees it: everything that crosses the boundary, typed here; what describes a model to it is in
 * description.ts.
 *
 * Threading: an Engine owns one thread, which makes it, works on it and ends it. Every method that returns a promise queues work
 * on it and the queue runs in call order, so a caller may issue a whole instruction list without awaiting in between. Arrays are
 * copied when a method is called, but for the bytes of readInto and write: those stay the engine's until the promise is settled,
 * and must not change, be transferred or resized before. Failures reject with an Error
 * whose `code` is one of the catalogue's (PL_OUT_OF_MEMORY, PL_TENSOR_MISMATCH, PL_CHECKPOINT_INVALID,
 * PL_QUANTIZATION_INVALID, PL_DEVICE_UNAVAILABLE, PL_ENGINE_FAILED).
 *
 * An engine holds one or more adapters over the same frozen weights, by number from 0; calls that leave the number out mean the first.
 *
 * Shape suffixes: T tokens of a micro-batch (flat, no padding), S sequences in it, D hidden width, V vocabulary, R rank.
 */
import type { Dtype, FloatDtype, LinkDtype } from "../common/dtype.ts";
import type { PackedMx, PackedWeight, QuantizedHold } from "../common/quantization.ts";
import type { EngineArch, EngineLayer, SegmentDescription } from "./description.ts";
import type { CachedSequences, DrawnToken, SamplingSettings, TokenDraw } from "./inference.ts";
import type {
  Communicator,
  CommunicatorOptions,
  DevicePlace,
  SharedAddress,
  SharedReceiver,
  SharedSender,
} from "./links.ts";

export type { FloatDtype, PackedWeight, QuantizedHold };

export interface NativeAddon {
  /** What this build and this machine can do; never throws for a missing GPU. */
  capabilities(): Capabilities;
  /**
   * Makes an engine on a thread of its own: its device's context, the arena, pinned memory. Errors: PL_DEVICE_UNAVAILABLE,
   * PL_OUT_OF_MEMORY, PL_TENSOR_MISMATCH for options that make no engine.
   */
  openEngine(options: EngineOptions): Promise<Engine>;
  /**
   * Fills `out` with N(0, std) in `dtype` (float32, bfloat16, float16) from a counter-based generator: element i depends
   * only on (seed, stream, offset + i). Runs on `threads` threads off the event loop.
   */
  fillNormal(out: Uint8Array, dtype: Dtype, key: RandomKey, std: number, threads: number): Promise<void>;
  /** out[i] ~ U(-bound, bound), same generator. */
  fillUniform(out: Float32Array, key: RandomKey, bound: number): void;
  /**
   * Quantises a weight [out, in] given in `dtype` into bitsandbytes' tensors, off the event loop.
   * Error: PL_QUANTIZATION_INVALID for a NaN or an infinity, naming its row and column.
   */
  quantize(
    weight: Uint8Array,
    dtype: FloatDtype,
    shape: readonly [number, number],
    hold: QuantizedHold,
    threads: number,
  ): Promise<PackedTensor[]>;
  /** The values of a quantised weight, [out, in] in `dtype`. Error: PL_QUANTIZATION_INVALID for a state that contradicts itself. */
  dequantize(packed: PackedWeight<Uint8Array>, dtype: FloatDtype, threads: number): Promise<Uint8Array>;
  /** weight [out, in] (in `dtype`, in place) += scale * B [out, R] * A [R, in]; the sum is made in float32 and rounded once. */
  addLowRank(
    weight: Uint8Array,
    dtype: Dtype,
    out: number,
    input: number,
    a: Float32Array,
    b: Float32Array,
    scale: number,
  ): Promise<void>;
  /**
   * Low-rank factors of a weight [out, in]: left [out, rank] with orthonormal columns, values [rank], right [rank, in]. "svd": of the largest
   * singular values, as exact as float32 allows (iterations -1) or as torch.svd_lowrank with so many; "qr": the first of a QR decomposition,
   * values 1. The same bits on any number of threads. Error: PL_TENSOR_MISMATCH for a rank that the weight does not have.
   */
  lowRank(
    weight: Float32Array,
    shape: readonly [number, number],
    rank: number,
    kind: "svd" | "qr",
    iterations: number,
    seed: number,
    threads: number,
  ): Promise<{ readonly left: Float32Array; readonly values: Float32Array; readonly right: Float32Array }>;
  /** a [m, inner] times the transpose of b [n, inner], in float32: a trial of the library that all products use. */
  product(a: Float32Array, b: Float32Array, inner: number): Float32Array;
  /** CRC-32C (Castagnoli). */
  crc32c(bytes: Uint8Array): number;
  readonly SharedSender: new (
    capacity: number,
    /** After waitForProgress(): something was, or may have been, released or granted. */
    onProgress: () => void,
    /** Once, when the other end has closed or its process has ended. */
    onClosed: (reason: string) => void,
  ) => SharedSender;
  /** Maps the memory of a SharedSender of this host. Error: PL_LINK_FAILED if it can't. */
  readonly SharedReceiver: new (
    address: SharedAddress,
    onMessage: (offset: number, bytes: number) => void,
    onClosed: (reason: string) => void,
  ) => SharedReceiver;
  /** For a new communicator: 128 bytes that all of its ranks are given. Opens one. Error: PL_LINK_FAILED without NCCL. */
  ncclUniqueId(): Uint8Array;
  /**
   * This rank's part in a communicator; opens in the background. `onFailed`: once, when it can't be used any more (its deadline
   * passed, a peer is gone, NCCL reports an error): it was aborted then. Error: PL_LINK_FAILED without NCCL,
   * PL_DEVICE_UNAVAILABLE.
   */
  readonly Communicator: new (
    options: CommunicatorOptions,
    onFailed: (reason: string) => void,
  ) => Communicator;
  /** From here on this process keeps the memory it frees for reuse, instead of giving it back to the system at once. */
  keepFreedMemory(): void;
}

export interface RandomKey {
  readonly seed: number;
  /** Names one stream, e.g. a hash of the tensor's name; below 2^53. */
  readonly stream: number;
  /** Index of the first element. */
  readonly offset: number;
}

export interface Capabilities {
  readonly version: string;
  /** Hash or version of the sources it was built from: workers of different builds refuse each other. */
  readonly build: string;
  readonly cpu: {
    readonly isa: string;
    readonly threads: number;
    readonly bf16: boolean;
    readonly memoryBytes: number;
  };
  readonly nccl: NcclLibrary;
  /** null where the addon was built without nvcc. */
  readonly cuda: {
    readonly runtime: number;
    readonly driver: number;
    readonly devices: readonly CudaDevice[];
    /** Why no device can be used, if none can. */
    readonly reason: string | null;
  } | null;
}

/** NCCL as this machine has it, e.g. "2.27.3"; or why it can't be used. */
export interface NcclLibrary {
  readonly version: string | null;
  readonly reason: string | null;
  /** A stand-in that moves host memory, for CPU engines. */
  readonly hostMemory: boolean;
}

export interface CudaDevice {
  readonly index: number;
  /** "0000:1b:00.0" */
  readonly pciBusId: string;
  readonly name: string;
  readonly capability: readonly [number, number];
  readonly totalBytes: number;
  readonly freeBytes: number;
}

export interface EngineOptions {
  /** "cpu" or "cuda:N". */
  readonly device: string;
  /** CPU threads; results do not depend on it. */
  readonly threads: number;
  readonly computeDtype: FloatDtype;
  readonly arch: EngineArch;
  /** Bytes of the arena for activations, gradients and workspaces; reserved at once, committed as touched. */
  readonly arenaBytes: number;
  /** Bytes of the host's memory for activations of offloaded blocks; absent: 0. */
  readonly hostBytes?: number;
  /** Of another engine with the same device, threads, dtype and arch. Layers that `keep` does not name are freed before anything is made. */
  readonly frozen?: FrozenLayers;
  /** With `frozen`. Segments find them, and lack none of their weights. */
  readonly keep?: readonly KeptLayer[];
}

/** Where a tensor's bytes lie: a checked range of a safetensors file. */
export interface TensorSource {
  readonly path: string;
  readonly offset: number;
  readonly bytes: number;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  /** The file has [in, out] of a shape [out, in]; absent: not. */
  readonly transposed?: boolean;
  /** The file has codes in e4m3, a scale for each block: `dtype` (bfloat16) and `bytes` are those of what they stand for. */
  readonly scales?: { readonly location: TensorSource; readonly block: readonly [rows: number, columns: number] };
}

/** How a weight is held: in a dtype, or quantised (linear weights only). */
export type HoldAs = FloatDtype | QuantizedHold;

/** One tensor of a quantised weight's serialised form. */
export interface PackedTensor {
  /** After the module's path and a dot: "weight", "weight.absmax", "SCB", … */
  readonly suffix: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** One micro-batch: rows concatenated without padding. Every rank gets the first part; the rest where it is needed. */
export interface MicroBatch {
  /** Distinct for every micro-batch in flight; names what forward saved for backward. */
  readonly index: number;
  /** Whose it is: an adapter's number. Absent: the first's. */
  readonly adapter?: number;
  /** [S + 1], starts with 0, ends with T. */
  readonly cuSeqlens: Int32Array;
  /** [S] row numbers within the step: the dropout generator's `row` key. */
  readonly rowIds: Int32Array;
  /** The optimizer step: the dropout generator's `step` key. */
  readonly step: number;
  readonly seed: number;
  /** Training: dropout on, saved for backward. Otherwise neither. */
  readonly training: boolean;
  /** Share of each label that goes to all tokens of the vocabulary alike. */
  readonly labelSmoothing: number;
  /** Training: noise of up to this / sqrt(row's tokens * D) on the embeddings; 0: none. */
  readonly noiseAlpha: number;
  /** Training: gradients are of so many times the loss. */
  readonly lossScale: number;
  /** [T], for a segment that starts with the embedding. */
  readonly tokens: Int32Array | null;
  /** [T], for a segment that ends with the head: the label of the position after t, or -100. */
  readonly targets: Int32Array | null;
  /** [T]: weight of each label's cross entropy in the loss sum. */
  readonly weights: Float32Array | null;
}

/** A tensor in device memory. Freed by `free()`, at the latest when collected. */
export interface DeviceTensor {
  readonly shape: readonly number[];
  readonly dtype: Dtype;
  readonly bytes: number;
  free(): void;
}

export interface ForwardResult {
  /** [T, D] in the compute dtype; null after a head. */
  readonly output: DeviceTensor | null;
  /** Sum over label tokens of weight * cross entropy; 0 without a head. */
  readonly lossSum: number;
  /** Label tokens counted, and how many of them were predicted right (argmax). */
  readonly labelTokens: number;
  readonly correctTokens: number;
  /** Of a loss that is NaN or infinite: which, and where it is first ("NaN, first at token 3 of row 0"); null: it is finite. */
  readonly notFinite: string | null;
}

export interface OptimizerStep {
  /** 1 for the first update. */
  readonly step: number;
  /** Of each of the adapter's matrices, in matrixNames() order. */
  readonly learningRates: Float64Array;
  /** Decoupled; of each matrix. */
  readonly weightDecays: Float64Array;
  /** Factor on every gradient before the update (clipping, loss scale, replicas). */
  readonly gradScale: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
}

export type MatrixPart = "weight" | "grad" | "exp_avg" | "exp_avg_sq";

export interface Engine {
  /** Adds a segment with its first adapter and returns its number (0, 1, …). All segments are added before weights are loaded. */
  addSegment(description: SegmentDescription): Promise<number>;
  /**
   * Another adapter over a segment's frozen weights: the same layers, but for what they learn. Before weights are loaded. Returns the
   * adapter's number (1, 2, …), the same in each segment where all get their adapters in one order. Error: PL_TENSOR_MISMATCH.
   */
  addAdapter(segment: number, layers: readonly EngineLayer[]): Promise<number>;

  /**
   * Reads one checkpoint tensor of the segment (mapped, converted or quantised, packed for the products). Names as in the
   * description. Error: PL_QUANTIZATION_INVALID for a NaN or an infinity where it is to be quantised, naming tensor and place.
   */
  loadWeight(segment: number, name: string, source: TensorSource, holdAs: HoldAs): Promise<void>;
  /** The same of values at hand, [out, in]. */
  loadValues(
    segment: number,
    name: string,
    shape: readonly [number, number],
    values: Float32Array,
    holdAs: HoldAs,
  ): Promise<void>;
  /** Reads a linear weight that its checkpoint holds quantised, as it is. Error: PL_QUANTIZATION_INVALID for a bad state. */
  loadPacked(segment: number, name: string, packed: PackedWeight<TensorSource> | PackedMx<TensorSource>): Promise<void>;
  /** Names of tensors that the segment still lacks. */
  missingWeights(segment: number): Promise<string[]>;

  /** Matrices that learn, all float32, row by row: a pair's A [R, in], B [out, R]. Names are a module's and a kind's: "… .lora_A.weight". */
  setMatrix(name: string, part: MatrixPart, values: Float32Array, adapter?: number): Promise<void>;
  getMatrix(name: string, part: MatrixPart, adapter?: number): Promise<Float32Array>;
  /** Those that an adapter learns, segment by segment: the order of gradSquares and of an optimizer step's rates. */
  matrixNames(adapter?: number): Promise<string[]>;

  /** Matrices that follow from loaded weights, and from the values of A and B: DoRA's magnitudes, biases, rows of tokens. */
  firstValues(adapter?: number): Promise<void>;

  /**
   * From here on what these modules' products take is kept, of one module a product: float32, row after row, batch after batch. What was
   * watched before no longer is. Resolves with those that this engine holds.
   */
  watchInputs(modules: readonly string[]): Promise<string[]>;
  /** What a watched module took since, and nothing of it is kept. Error: PL_TENSOR_MISMATCH for another name. */
  takeInputs(module: string): Promise<Float32Array>;

  /** `input` is [T, D] (null for a segment that starts with the embedding); it is consumed: freed when no longer needed. */
  forward(segment: number, batch: MicroBatch, input: DeviceTensor | null): Promise<ForwardResult>;
  /**
   * Accumulates gradients of that micro-batch (a head that is trained whole did so in forward) and returns the gradient of the
   * segment's input, [T, D], or null unless needsInputGrad. `gradOutput` is null for a segment that ends with the head (its loss is
   * the sum that forward returned, times the batch's lossScale). Consumes gradOutput and what forward saved.
   */
  backward(segment: number, batchIndex: number, gradOutput: DeviceTensor | null): Promise<DeviceTensor | null>;
  /** Drops what forward saved for batches that will get no backward. */
  discard(): Promise<void>;

  /**
   * An adapter's gradients back to back, in an order of the engine's own that is the same for the same segments: what replicas add up.
   * setGradients takes as many values; error: PL_TENSOR_MISMATCH for another count.
   */
  gradients(adapter?: number): Promise<Float32Array>;
  setGradients(values: Float32Array, adapter?: number): Promise<void>;
  /** Sum of squares of each gradient, float64, in matrixNames() order. */
  gradSquares(adapter?: number): Promise<Float64Array>;
  /** AdamW over every matrix that an adapter learns; then its gradients are zero. */
  optimizerStep(step: OptimizerStep, adapter?: number): Promise<void>;
  zeroGrad(adapter?: number): Promise<void>;

  /**
   * A key/value cache of all the engine's segments: states of so many sequences, and rows for so many tokens of all of them. Returns its
   * number.
   */
  createCache(sequences: number, rows: number): Promise<number>;
  freeCache(cache: number): Promise<void>;
  /**
   * Inference with a cache: appends each sequence's new tokens. Returns [T, D]; after a head, float32 logits [S, V] of each sequence's last
   * token. After a failure the sequences must begin anew. Errors: PL_TENSOR_MISMATCH for rows and slots that the cache has not.
   */
  infer(
    segment: number,
    cache: number,
    sequences: CachedSequences,
    tokens: Int32Array | null,
    input: DeviceTensor | null,
    adapter?: number,
  ): Promise<DeviceTensor>;

  /**
   * The next token from a row of float32 logits [S, V], which may change: repetition penalty, biases, temperature, top-k, top-p and min-p in
   * transformers' order, then the token at draw / 2^32 of what is left by falling logit (equal logits by rising id). topK 1 is greedy.
   * Log-probabilities are those of the softmax of the logits as they came. Errors: PL_TENSOR_MISMATCH, PL_ENGINE_FAILED where the largest
   * logit is not finite.
   */
  sample(logits: DeviceTensor, settings: SamplingSettings, draw: TokenDraw): Promise<DrawnToken>;

  /** Copies out of device memory. */
  read(tensor: DeviceTensor): Promise<Buffer>;
  /** The same into pieces of host memory that make up the tensor's bytes, each a whole number of elements. */
  readInto(tensor: DeviceTensor, pieces: readonly Uint8Array[]): Promise<void>;
  /** Copies such pieces into device memory. */
  write(pieces: readonly Uint8Array[], shape: readonly number[], dtype: Dtype): Promise<DeviceTensor>;
  /** A copy on the device. */
  copy(tensor: DeviceTensor): Promise<DeviceTensor>;

  /** A tensor as a link carries it, float8_e4m3fn as [T, D + 4] (Ops::encode_rows); and back, in the compute dtype. Both consume it. */
  encode(tensor: DeviceTensor, dtype: LinkDtype): Promise<DeviceTensor>;
  decode(tensor: DeviceTensor): Promise<DeviceTensor>;

  /** Queues a copy into a communicator's memory, and one out of it. */
  readTo(tensor: DeviceTensor, place: DevicePlace): Promise<void>;
  writeFrom(place: DevicePlace, shape: readonly number[], dtype: Dtype): Promise<DeviceTensor>;
  /** As gradients and setGradients, through a communicator's memory. */
  gradientsTo(place: DevicePlace, adapter?: number): Promise<void>;
  setGradientsFrom(place: DevicePlace, adapter?: number): Promise<void>;
  gradientCount(adapter?: number): Promise<number>;
  /** sum [size] = the float32 rows of parts [count, size] added in their order. */
  sumParts(parts: DevicePlace, count: number, size: number, sum: DevicePlace): Promise<void>;

  memory(): EngineMemory;
  deviceUse(): Promise<DeviceUse>;
  /** Seconds of work so far: a GPU's own, of passes and updates it is through with; on a CPU those of the engine's thread. */
  busySeconds(): number;
  /** Stops the thread after what is queued; later calls reject. Idempotent. */
  close(): Promise<void>;
  /** As close(), but the frozen weights of layers that have them all stay on the device, for another engine. Once. */
  release(): Promise<FrozenLayers>;
}

/** Frozen weights between two engines of one model on one device, held alike. Freed by `free()`, at the latest when collected. */
export interface FrozenLayers {
  /** "embedding", "block 3", "norm", "head". One whose weight is trained whole is not among them. */
  readonly layers: readonly string[];
  readonly bytes: number;
  free(): void;
}

/** A layer that an engine takes over from FrozenLayers. */
export interface KeptLayer {
  readonly layer: string;
  /** As SegmentDescription.cachedBlocks says of it. */
  readonly expanded: boolean;
}

/** Device memory of this process; both 0 on CPUs. */
export interface DeviceUse {
  /** What was asked of the driver, the arena as a whole. */
  readonly allocatedBytes: number;
  /** What the device has less free than before its first use; other processes' changes count too. 0: unknown. */
  readonly takenBytes: number;
}

export interface EngineMemory {
  /** Frozen weights as held (packed copies included). */
  readonly weightBytes: number;
  /** LoRA weights, gradients and optimizer state. */
  readonly loraBytes: number;
  readonly cacheBytes: number;
  readonly arenaBytes: number;
  readonly arenaPeakBytes: number;
  /** In the host's memory beside the device's own: the embedding, and room for offloaded activations. */
  readonly hostBytes: number;
}
