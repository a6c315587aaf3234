import { createContext } from "preact";
import { useContext } from "preact/hooks";
import { keep, kept } from "./kept.ts";
import { en, type Words } from "./words/en.ts";
import { zh } from "./words/zh.ts";

export const LANGUAGES = { en, zh } as const;
export type Language = keyof typeof LANGUAGES;

const KEPT = "pipelora.language";

/** As it was chosen here before, else the first of the browser's that there is. */
export function firstLanguage(): Language {
  const chosen = kept(KEPT);
  const wanted = [...(chosen === null ? [] : [chosen]), ...navigator.languages];
  return wanted.map((tag) => tag.toLowerCase().split("-")[0]).find(isLanguage) ?? "en";
}

export function keepLanguage(language: Language): void {
  keep(KEPT, language);
}

export function isLanguage(name: string | undefined): name is Language {
  return name !== undefined && Object.hasOwn(LANGUAGES, name);
}

/** For `lang` and for how numbers and times are written. */
export const TAGS: Readonly<Record<Language, string>> = { en: "en", zh: "zh-CN" };

export const LanguageContext = createContext<Language>("en");

export function useLanguage(): Language {
  return useContext(LanguageContext);
}

export function useWords(): Words {
  return LANGUAGES[useContext(LanguageContext)];
}
