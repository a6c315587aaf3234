/** Texts that tokenizers cut in different ways; ids of all of them stand in tests/fixtures/tokenizers. */
export const TEXTS: readonly string[] = [
  "",
  " ",
  "  ",
  "\n",
  "\t\t\n \n",
  "Hello world",
  " Hello  world ",
  "   leading and trailing   ",
  "你好，世界！今天天气怎么样？",
  "嬛嬛一袅楚宫腰，正是臣女闺名。",
  "日本語のテキスト、カタカナとひらがな。",
  "한국어 텍스트입니다.",
  "مرحبا بالعالم ١٢٣",
  "नमस्ते दुनिया १२३",
  "สวัสดีชาวโลก ๑๒๓",
  "😀😃👨‍👩‍👧‍👦 🏳️‍🌈 🇨🇳🇺🇸",
  "Ⅷ ① ² ½ ㊿ 𝟘𝟙 ٠١٢ ৩৪",
  "1234567890 12 123 1234 3.14159 1,000,000",
  "\u00a0nbsp\u2003em\u3000wide\u200bzero\ufeffbom\u0085nel\u2028ls\u2029ps\u1680ogham\u180emvs",
  "\ufeff\ufeffx",
  "\u0085\u0085x \u0085 y",
  "def f(x):\n    if x:\n\t\treturn  x\n\n\n    return None\n",
  "for (int i = 0; i < n; ++i) {\r\n    a[i] += b[i];\r\n}\r\n",
  "it's IT'S it’s we'LL they'rE 'ſ it'ſ ſtart Maſſe Straße",
  "e\u0301 é n\u0303 ñ \u0301start a\u0308\u0323 Å Å ﬁ ﬂ ﷺ Ｆｕｌｌ　ｗｉｄｔｈ",
  "Zalgo: Z\u0351\u036b\u0343a\u0321l\u0334g\u0322o",
  "ＡＢＣ①㍿㌀ﾊﾝｶｸ",
  "x\u0000y\u0001z\u007f\u009f",
  "<s>[INST] Hi [/INST]</s><unk>",
  "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
  "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
  "<bos><start_of_turn>user\nhi<end_of_turn>\n<eos>",
  "a<|endoftext|>  b </s> c <s>d",
  "<0x0A><0xFF>▁▁ ▁x",
  "https://example.com/a?b=c&d=%20e#f",
  '{"key": [1, 2.5e-3, null], "嵌套": {"a": "\\n"}}',
  "$$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}$$",
  "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
  "................................................",
  "--------====____****####",
  "\u{10ffff}\u{e000}\u{1f9ff}\u{20000}\u{2f800}",
  "constructor __proto__ toString hasOwnProperty valueOf",
];

/** Where random texts take their characters from. */
const RANGES: readonly (readonly [number, number])[] = [
  [0x20, 0x7e],
  [0x20, 0x7e],
  [0x61, 0x7a],
  [0x61, 0x7a],
  [0x09, 0x0d],
  [0x20, 0x20],
  [0x30, 0x39],
  [0xa0, 0x17f],
  [0x300, 0x36f],
  [0x370, 0x5ff],
  [0x600, 0x6ff],
  [0x900, 0x97f],
  [0xe00, 0xe7f],
  [0x1e00, 0x1fff],
  [0x2000, 0x206f],
  [0x2150, 0x218f],
  [0x2460, 0x24ff],
  [0x3000, 0x30ff],
  [0x4e00, 0x9fa5],
  [0x4e00, 0x9fa5],
  [0xac00, 0xd7a3],
  [0xfe00, 0xfeff],
  [0xff00, 0xffef],
  [0x1f300, 0x1f6ff],
];

/** `count` texts of 1 to 40 characters, always the same for a seed (mulberry32). */
export function randomTexts(count: number, seed: number): string[] {
  let state = seed >>> 0;
  const below = (limit: number) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * limit);
  };
  return Array.from({ length: count }, () => {
    const few = [below(RANGES.length), below(RANGES.length), below(RANGES.length)];
    return Array.from({ length: 1 + below(40) }, () => {
      const [first, last] = RANGES[few[below(3)]!]!;
      return String.fromCodePoint(first + below(last - first + 1));
    }).join("");
  });
}
