import protobuf from "protobufjs";

/** The parts of sentencepiece_model.proto (google/sentencepiece) that encoding and decoding need. */
const root = protobuf.Root.fromJSON({
  nested: {
    ModelProto: {
      fields: {
        pieces: { rule: "repeated", type: "SentencePiece", id: 1 },
        trainerSpec: { type: "TrainerSpec", id: 2 },
        normalizerSpec: { type: "NormalizerSpec", id: 3 },
      },
    },
    SentencePiece: {
      fields: {
        piece: { type: "string", id: 1 },
        score: { type: "float", id: 2 },
        type: { type: "int32", id: 3, options: { default: 1 } },
      },
    },
    TrainerSpec: {
      fields: {
        modelType: { type: "int32", id: 3, options: { default: 1 } },
        treatWhitespaceAsSuffix: { type: "bool", id: 24, options: { default: false } },
        byteFallback: { type: "bool", id: 35, options: { default: false } },
        bosId: { type: "int32", id: 41, options: { default: 1 } },
        eosId: { type: "int32", id: 42, options: { default: 2 } },
      },
    },
    NormalizerSpec: {
      fields: {
        precompiledCharsmap: { type: "bytes", id: 2 },
        addDummyPrefix: { type: "bool", id: 3, options: { default: true } },
        removeExtraWhitespaces: { type: "bool", id: 4, options: { default: true } },
        escapeWhitespaces: { type: "bool", id: 5, options: { default: true } },
      },
    },
  },
});
/** Far above any model's: finding a piece's merges takes time that grows with the square of its length. */
const MAX_PIECE = 256;
const ModelProto = root.lookupType("ModelProto");

export const PIECE = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

export interface Piece {
  readonly piece: string;
  /** Log probability of a unigram model; minus the merge's rank of a BPE. */
  readonly score: number;
  readonly type: number;
}

export interface SentencePieceModel {
  readonly kind: "unigram" | "bpe";
  /** By id. */
  readonly pieces: readonly Piece[];
  /** Whether an unknown character becomes its bytes. */
  readonly byteFallback: boolean;
  /** Below zero where there is none. */
  readonly bosId: number;
  readonly eosId: number;
  /** Whether a space is put in front of a text. */
  readonly addDummyPrefix: boolean;
  /** Whether spaces at the ends are removed and runs of spaces become one. */
  readonly removeExtraWhitespaces: boolean;
  /** How characters are replaced before the text is split; empty: not at all. */
  readonly charsmap: Uint8Array;
}

/** Reads a serialised ModelProto. Throws Error on malformed bytes and on kinds of models that are not supported. */
export function parseSentencePieceModel(bytes: Uint8Array): SentencePieceModel {
  const message = ModelProto.decode(bytes) as protobuf.Message & {
    pieces: Piece[];
    trainerSpec?: {
      modelType: number;
      byteFallback: boolean;
      treatWhitespaceAsSuffix: boolean;
      bosId: number;
      eosId: number;
    };
    normalizerSpec?: {
      precompiledCharsmap: Uint8Array;
      addDummyPrefix: boolean;
      removeExtraWhitespaces: boolean;
      escapeWhitespaces: boolean;
    };
  };
  const { trainerSpec: trainer, normalizerSpec: normalizer, pieces } = message;
  if (pieces.length === 0) throw new Error("it has no pieces");
  const type = trainer?.modelType ?? 1;
  const kind = type === 1 ? "unigram" : type === 2 ? "bpe" : null;
  if (kind === null) throw new Error(`model_type ${type} is not read, expected 1 (unigram) or 2 (BPE)`);
  if (trainer?.treatWhitespaceAsSuffix) throw new Error("treat_whitespace_as_suffix is not read");
  if (normalizer?.escapeWhitespaces === false) throw new Error("escape_whitespaces false is not read");
  const unknown = pieces.filter((piece) => piece.type === PIECE.unknown).length;
  if (unknown !== 1) throw new Error(`it has ${unknown} unknown pieces, expected one`);
  const seen = new Set<string>();
  for (const [id, { piece, score }] of pieces.entries()) {
    if (piece === "" || seen.has(piece)) throw new Error(`piece ${id} is empty or stands there twice`);
    if (piece.length > MAX_PIECE) throw new Error(`piece ${id} has more than ${MAX_PIECE} characters`);
    if (pieces[id]?.type === PIECE.unused) throw new Error(`piece ${id} is unused, which is not read`);
    if (!Number.isFinite(score)) throw new Error(`piece ${id} has no finite score`);
    seen.add(piece);
  }
  return {
    kind,
    pieces,
    byteFallback: trainer?.byteFallback ?? false,
    bosId: trainer?.bosId ?? 1,
    eosId: trainer?.eosId ?? 2,
    addDummyPrefix: normalizer?.addDummyPrefix ?? true,
    removeExtraWhitespaces: normalizer?.removeExtraWhitespaces ?? true,
    charsmap: normalizer?.precompiledCharsmap ?? new Uint8Array(),
  };
}
