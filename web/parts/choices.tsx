import { isLanguage, LANGUAGES, type Language, useWords } from "../language.ts";
import { isTheme, THEMES, type Theme } from "../theme.ts";

interface ChoicesProps {
  readonly language: Language;
  readonly theme: Theme;
  readonly onLanguage: (language: Language) => void;
  readonly onTheme: (theme: Theme) => void;
}

export function Choices({ language, theme, onLanguage, onTheme }: ChoicesProps) {
  const words = useWords();
  return (
    <div class="choices">
      <label>
        <span class="heard">{words.theme}</span>
        <select
          value={theme}
          title={words.theme}
          onChange={({ currentTarget: { value } }) => isTheme(value) && onTheme(value)}
        >
          {THEMES.map((one) => (
            <option key={one} value={one}>
              {words.themes[one]}
            </option>
          ))}
        </select>
      </label>
      <label>
        <span class="heard">{words.language}</span>
        <select
          value={language}
          title={words.language}
          onChange={({ currentTarget: { value } }) => isLanguage(value) && onLanguage(value)}
        >
          {Object.entries(LANGUAGES).map(([tag, { languageName }]) => (
            <option key={tag} value={tag} lang={tag}>
              {languageName}
            </option>
          ))}
        </select>
      </label>
    </div>
  );
}
