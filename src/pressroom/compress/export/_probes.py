"""Texts that show where tokenizers differ: scripts, numbers, contractions, code, signs, and runs of blanks."""

PROBES = (
    "The quick brown fox jumps over the lazy dog. It's 3:45 pm, isn't it? They'LL say I'm, we've, he'd.",
    "Les élèves naïfs mangèrent où l'été s'achève; ça coûte 1 234,56 €, n'est-ce pas ? Œuvre, dèjà-vu.",
    "人工智能模型可以在本地运行，不需要网络。二〇二六年三月１２日，价格：￥9,999。 你好 世界",
    "日本語のテキストとカタカナ、 한국어 문장도 있습니다. Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم",
    "def f(x: int) -> str:\n    if x >= 10 and x != 0x1F:\n\t\treturn f\"{x:>8.3f}\"  # ok\n    return '\\n'\n\n\n",
    "for (int i=0;i<100;++i){a[i]+=b[i]*2;} // ==> {}[]()<>|&^%$#@!~`\r\n\r\nEnd",
    "🙂🙃 👩‍👩‍👧‍👦 🇫🇷 ❤️ emoji — “quotes” … ½ ² ™ ﬁ é é ａｂｃ",
    "   leading, trailing   \n\n  \t mixed \t\t runs      of   blanks\n \n  \n   x    ",
    "1 12 123 1234 12345 123456789 0.001 1e-10 3.14159 2026-11-22 192.168.0.1",
    "x  1   22    333\n\n  4\t5 \n 6a7  b8   ²³ Ⅷ ٣٤",
    "HELLO World helloWorld HelloWORLD snake_case kebab-case CamelCase42 ALLCAPS's DON'T can't'd",
    "https://example.org/path?q=1&r=two#frag user@example.com C:\\dir\\file.txt /usr/local/bin",
    " ",
    "\n",
    "a",
)

#: Letters with marks of their own: llama.cpp cuts them otherwise than some models do (tekken, gpt-4o), knowingly.
COMBINING = (
    "नमस्ते दुनिया, हिन्दी में लिखा हुआ।",
    "ภาษาไทยไม่มีช่องว่าง",
    "Tiếng Việt có dấu e\u0301 a\u0300 n\u0303",
    "বাংলা ভাষা தமிழ் మొదలు ಕನ್ನಡ",
)
