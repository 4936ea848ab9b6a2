"""What is personal is found however it is written, and what only looks like it is left alone."""

from __future__ import annotations

import dataclasses

import pytest

from pressroom.text import Finding, in_pieces, personal_data


def found(text: str) -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in personal_data(text)]


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        ("write to jane.doe+news@mail.example.com, please", "email", "jane.doe+news@mail.example.com"),
        ("<o'neill@example.co.uk>", "email", "o'neill@example.co.uk"),
        ("an jürgen@müller.de schreiben", "email", "jürgen@müller.de"),
        ("contact: jane (at) example.com", "email", "jane (at) example.com"),
        ("jane[AT]example[dot]com", "email", "jane[AT]example[dot]com"),
        ("jane at example dot com", "email", "jane at example dot com"),
        ("jane＠example．com", "email", "jane＠example．com"),
        ("ja\u200bne@exam\u200bple.com", "email", "ja\u200bne@exam\u200bple.com"),
        ("邮箱是jane@example.cn吗", "email", "邮箱是jane@example.cn吗"),
        ("DE89 3704 0044 0532 0130 00 ist es", "iban", "DE89 3704 0044 0532 0130 00"),
        ("pay GB82WEST12345698765432.", "iban", "GB82WEST12345698765432"),
        ("fr14-2004-1010-0505-0001-3m02-606", "iban", "fr14-2004-1010-0505-0001-3m02-606"),
        ("MT84MALT011000012345MTLCAST001S", "iban", "MT84MALT011000012345MTLCAST001S"),
        ("NO9386011117947", "iban", "NO9386011117947"),
        ("4111111111111111", "card", "4111111111111111"),
        ("card 4111 1111 1111 1111 12/27 123", "card", "4111 1111 1111 1111"),
        ("5555-5555-5555-4444", "card", "5555-5555-5555-4444"),
        ("amex 3782 822463 10005", "card", "3782 822463 10005"),
        ("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "card", "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"),
        ("４１１１ １１１１ １１１１ １１１１", "card", "４１１１ １１１１ １１１１ １１１１"),
        ("4111\u200b1111\u200b1111\u200b1111", "card", "4111\u200b1111\u200b1111\u200b1111"),
        ("4111–1111–1111–1111", "card", "4111–1111–1111–1111"),
        ("SSN 123-45-6789", "ssn", "123-45-6789"),
        ("Steuer-ID 86 095 742 719", "national-id", "86 095 742 719"),
        ("Steuer-ID 86095742719", "national-id", "86095742719"),
        ("NIR 2 55 08 14 168 025 38", "national-id", "2 55 08 14 168 025 38"),
        ("DNI 12345678Z", "national-id", "12345678Z"),
        ("NIE X1234567L", "national-id", "X1234567L"),
        ("NINO AB 12 34 56 C", "national-id", "AB 12 34 56 C"),
        ("NINO AB123456C", "national-id", "AB123456C"),
        ("codice fiscale RSSMRA85T10A562S", "national-id", "RSSMRA85T10A562S"),
        ("AHV 756.9217.0769.85", "national-id", "756.9217.0769.85"),
        ("rijksregister 93.05.18-223.61", "national-id", "93.05.18-223.61"),
        ("personnummer 811218-9876", "national-id", "811218-9876"),
        ("hetu 131052-308T", "national-id", "131052-308T"),
        ("CPF 529.982.247-25", "national-id", "529.982.247-25"),
        ("身份证 11010519491231002X", "national-id", "11010519491231002X"),
        ("BSN: 111222333", "national-id", "111222333"),
        ("PESEL 44051401359", "national-id", "44051401359"),
        ("from 203.0.113.77:8080", "ip-address", "203.0.113.77"),
        ("http://203.0.113.77/x", "ip-address", "203.0.113.77"),
        ("at 2001:db8:85a3::8a2e:370:7334,", "ip-address", "2001:db8:85a3::8a2e:370:7334"),
        ("2001:0db8:85a3:0000:0000:8a2e:0370:7334", "ip-address", "2001:0db8:85a3:0000:0000:8a2e:0370:7334"),
        ("+49 30 901820", "phone", "+49 30 901820"),
        ("+49 (0)30 901820-0", "phone", "+49 (0)30 901820-0"),
        ("+1-415-555-2671 until 2027", "phone", "+1-415-555-2671"),
        ("+33142685300", "phone", "+33142685300"),
        ("+８６ 138 0013 8000", "phone", "+８６ 138 0013 8000"),
        ("0049 30 901820", "phone", "0049 30 901820"),
        ("(415) 555-2671", "phone", "(415) 555-2671"),
        ("415-555-2671", "phone", "415-555-2671"),
        ("415.555.2671", "phone", "415.555.2671"),
        ("1 415 555 2671", "phone", "1 415 555 2671"),
        ("0171 2345678", "phone", "0171 2345678"),
        ("0171/2345678", "phone", "0171/2345678"),
        ("030 / 901 820 12", "phone", "030 / 901 820 12"),
        ("0612345678", "phone", "0612345678"),
        ("01 42 68 53 00", "phone", "01 42 68 53 00"),
        ("01.42.68.53.00", "phone", "01.42.68.53.00"),
        ("020 7946 0958", "phone", "020 7946 0958"),
        ("(020) 7946 0958", "phone", "(020) 7946 0958"),
        ("03-1234-5678", "phone", "03-1234-5678"),
        ("8 (495) 123-45-67", "phone", "8 (495) 123-45-67"),
        ("(11) 91234-5678", "phone", "(11) 91234-5678"),
        ("612 34 56 78", "phone", "612 34 56 78"),
        ("138 0013 8000", "phone", "138 0013 8000"),
        ("电话13800138000。", "phone", "13800138000"),
        ("call me at 4155552671", "phone", "4155552671"),
        ("phone: 5552671", "phone", "5552671"),
        ("mein Handy ist 1712345678", "phone", "1712345678"),
        ("тел. 495 123 45 67", "phone", "495 123 45 67"),
        ("born on May 12, 1990 in Rome", "birth-date", "May 12, 1990"),
        ("date of birth: 1990-05-12", "birth-date", "1990-05-12"),
        ("DOB 12/05/90", "birth-date", "12/05/90"),
        ("geb. 12. Mai 1990", "birth-date", "12. Mai 1990"),
        ("née le 12 mai 1990", "birth-date", "12 mai 1990"),
        ("nacido el 12 de mayo de 1990", "birth-date", "12 de mayo de 1990"),
        ("生年月日：1990年5月12日", "birth-date", "1990年5月12日"),
    ],
)
def test_found(text: str, kind: str, what: str) -> None:
    assert found(text) == [(kind, what)]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("mail jane\n@example.com!", "jane\n@example.com"),
        ("mail jane@\nexample.com!", "jane@\nexample.com"),
        ("mail jane\r\n@\r\nexample.com!", "jane\r\n@\r\nexample.com"),
        ("mail jane\x00@example.com!", "jane\x00@example.com"),
        ("mail jane@\x01example.com!", "jane@\x01example.com"),
        ("mail ja\x00ne@exam\x00ple.com!", "ja\x00ne@exam\x00ple.com"),
        ("mail jane\u00a0@example.com!", "jane\u00a0@example.com"),
        ("mail jane@\u00a0example.com!", "jane@\u00a0example.com"),
        ("mail jane @ example.com!", "jane @ example.com"),
        ("mail jane\x85@example.com!", "jane\x85@example.com"),
        ("mail j\u0336a\u0336ne@e\u0301xample.com!", "j\u0336a\u0336ne@e\u0301xample.com"),
        ("mail jane@example\u2024com!", "jane@example\u2024com"),
        ("mail jane@example\u3002com!", "jane@example\u3002com"),
        ("mail jane@mail\uff61example\uff61com!", "jane@mail\uff61example\uff61com"),
        ("mail jane@example.com\u3002", "jane@example.com"),
        (r"mail jane\x40example.com!", r"jane\x40example.com"),
        (r"mail jane\u{40}example.com!", r"jane\u{40}example.com"),
        (r"mail jane\u{000040}example.com!", r"jane\u{000040}example.com"),
        (r"mail jane\u0040example\x2ecom!", r"jane\u0040example\x2ecom"),
        (r"mail jane\\\\x40example.com!", r"jane\\\\x40example.com"),
        (r"mail \x6aane\x40example.co\x6d!", r"\x6aane\x40example.co\x6d"),
        (r"mail \U0000006aane\U00000040example.com!", r"\U0000006aane\U00000040example.com"),
        ("?to=jane%40example.com&x", "jane%40example.com"),
        ("mail jane&#64;example.com!", "jane&#64;example.com"),
        ("mail jane&#x0040;ex\u200bample.com!", "jane&#x0040;ex\u200bample.com"),
        ('mail "john smith"@x.org!', '"john smith"@x.org'),
        ("mail ⓙⓐⓝⓔ@ⓔⓧⓐⓜⓟⓛⓔ.ⓒⓞⓜ!", "ⓙⓐⓝⓔ@ⓔⓧⓐⓜⓟⓛⓔ.ⓒⓞⓜ"),
        ("mail 🅙🅐🅝🅔@🅴🆇.🄲🄾🄼!", "🅙🅐🅝🅔@🅴🆇.🄲🄾🄼"),
    ],
)
def test_addresses_in_disguise(text: str, what: str) -> None:
    assert found(text) == [("email", what)]


@pytest.mark.parametrize("seam", [".", "_", "/", "\u00b7", "\u2022", "\n", "\r\n", " \n", "\u00a0", "\x00", "\u2024"])
def test_groups_with_anything_between_them(seam: str) -> None:
    card, iban = seam.join(["4111", "1111", "1111", "1111"]), seam.join(["DE89", "3704", "0044", "0532", "0130", "00"])
    british = seam.join(["GB82", "WEST", "1234", "5698", "7654", "32"])
    american = seam.join(["3782", "822463", "10005"])
    assert found(f"card {card}, iban {iban} or\t{british}; {american}") == [
        ("card", card), ("iban", iban), ("iban", british), ("card", american)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        ("x 4111 1111\n1111 1111 y", "card", "4111 1111\n1111 1111"),
        ("4.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1", "card", "4.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1"),
        ("④①①①①①①①①①①①①①①①", "card", "④①①①①①①①①①①①①①①①"),
        ("➍❶➀⓵ 1111 1111 1111", "card", "➍❶➀⓵ 1111 1111 1111"),
        ("⁴¹¹¹ ¹¹¹¹ ¹¹¹¹ ¹¹¹¹", "card", "⁴¹¹¹ ¹¹¹¹ ¹¹¹¹ ¹¹¹¹"),
        ("₄₁₁₁₁₁₁₁₁₁₁₁₁₁₁₁", "card", "₄₁₁₁₁₁₁₁₁₁₁₁₁₁₁₁"),
        ("4¹1¹ 1111 1111 1111", "card", "4¹1¹ 1111 1111 1111"),
        ("4\ufe0f\u20e3" + "1\ufe0f\u20e3" * 14 + "1", "card", "4\ufe0f\u20e3" + "1\ufe0f\u20e3" * 14 + "1"),
        ("𝟒𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏", "card", "𝟒𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏"),
        ("۴۱۱۱ ۱۱۱۱ ۱۱۱۱ ۱۱۱۱", "card", "۴۱۱۱ ۱۱۱۱ ۱۱۱۱ ۱۱۱۱"),
        ("DE⁸⁹370400440532013000", "iban", "DE⁸⁹370400440532013000"),
        ("+⁴⁹ 30 901820", "phone", "+⁴⁹ 30 901820"),
        # The mark of a note, and the number of an item, which are no digits of what they stand at.
        ("4111 1111 1111 1111²", "card", "4111 1111 1111 1111"),
        ("①0612345678", "phone", "0612345678"),
        # What stands between two numbers, and is nothing that anybody sees.
        ("4111111111111111\x1e1234", "card", "4111111111111111"),
    ],
)
def test_numbers_in_disguise(text: str, kind: str, what: str) -> None:
    assert found(text) == [(kind, what)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain words, nothing else; 42 of them in 2024",
        "2024-11-21 22:43:20.123456 INFO [worker-3] took 1234567 us, 98.7654321 %",
        "21.11.2024 08:30, 11/21/2024 10:30, 2024/11/21, 20241121, 20241121T083000Z",
        "01.02.2024 10:15 until 03.02.2024",
        "1700000000 1700000000123 1700000000123456789",
        "pip install torch==2.13.0 uvloop>=0.21.0 name@1.2.3 package@2.0.0-rc1",
        "version 1.2.3.4, v1.2.3.4, Chrome/120.0.0.0, ==1.2.3.4, release 10.0.19045.3803",
        "127.0.0.1, 0.0.0.0, 255.255.255.0, ::1, 256.1.1.1, 1.2.3, 1.2.840.113549.1.9.16.1.4",
        "std::vector<int>, a::b, dead::Beef, c10::MemoryFormat, 12:34:56, 00:1a:2b:3c:4d:5e",
        "550e8400-e29b-41d4-a716-446655440000",
        "3b18e512dba79e4c8300dd08aeb37f8e728b8dad9a3c5f0e1d2c3b4a59687f6e",
        "sha256-2b3e4c18f5d9 commit 0123456789abcdef0123456789abcdef01234567",
        "ISBN 978-3-16-148410-0, ISBN 0306406152, ISBN-10: 0-306-40615-2, ISSN 0378-5955",
        "$1,234,567.89 and 1.234.567,89 € and 1 050 000 000 people, £0123456789",
        "+10 000 000 users, +2147483647, (946688461000000000 + 500000000) / 1000, +0100, +5.5 %",
        "0.2240202988740153 -1.58963820029007 3.14159265358979323846 6.02214076e23 1e-10",
        "4111 1111 1111 1112 and 1234567890123456 and 0000000000000000",
        "DE89 3704 0044 0532 0130 01, XX89370400440532013000, DE8937040044053201300",
        "000-12-3456, 666-12-3456, 900-12-3456, 123-00-4567, 123-45-0000",
        "12345678A, X1234567A, 12345678901, GB 12 34 56 C, ABCDEF12A34B567C",
        "@decorator\ndef f(a, b): return a @ b  # foo@bar, @app.route('/x'), icon@2x",
        "git diff @@ -1234567,8 +1234567,9 @@ index 0171234..0182345",
        "for i in range(1000000): x[0123] += 0x0171234567 & 0b0101010101",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
        "00000000  7f 45 4c 46 02 01 01 00  00 00 00 00 00 00 00 00",
        "POST /v1/0171234567/items?id=0612345678 HTTP/1.1",
        "matrix [[0.1, 0.2], [30, 901820]], order #0612345678, id=4155552671",
        "Phys. Rev. E 64, 016132 (2001); pages 1234-5678; 10-20-30; 1990-2024",
        "released on May 12, 1990; since 1990-05-12; founded 12.05.1990",
        "the battery lasts at most 12 dots; meet at noon [at] home",
        "DOI 10.1000/182, arXiv:2311.01234, RFC 9110, port 65535, 1024x768, 3840x2160",
        "2022 2023 2024 2025 and 3000 3001 3002 3003",
        "tokens: 4096 8192 16384 32768 65536 131072",
        "lat 52.520008, lon 13.404954",
        "callback(12345678), recall 12345678, ringbuffer 1234567",
        "4111\n1111\n1111\n1111\n2222\n",
        "12\n4111\n1111\n1111\n1111",
        "4111\r\n1111\r\n1111\r\n1111\r\n2222",
        "4111.1111.1111.1111.1111, x.4111.1111.1111.1111, 1.3.6.1.4.1.311.21.8",
        "return x @ self.weight\n@app.route\n@pytest.fixture\ny @ w.T; see us @ www.example.com",
        '"label"@en . "x"@de, "a @b", "a"@',
        "m² 10²³, E = mc², H₂SO₄, CO₂ of 2024²; ①②③④⑤⑥",
        r"C:\x64\users\u0041, \x41\x42\x43, \d+\w{40}, %4000 R&D&#65;",
        "DE89/3704/0044/0532/0130/01 fr14_abcd_efgh_ijkl",
    ],
)
def test_left_alone(text: str) -> None:
    assert found(text) == []


def test_several_in_one_text() -> None:
    text = "Jane, jane@example.com, 0171 2345678, IBAN DE89370400440532013000, 4111111111111111, 203.0.113.9."
    assert [kind for kind, _ in found(text)] == ["email", "phone", "iban", "card", "ip-address"]


def test_a_number_inside_a_found_one_is_not_found_again() -> None:
    assert found("DE89 3704 0044 0532 0130 00") == [("iban", "DE89 3704 0044 0532 0130 00")]


def test_findings_hold_no_text_and_do_not_change() -> None:
    (finding,) = personal_data("jane@example.com")
    assert finding == Finding("email", 0, 16)
    assert "jane" not in repr(finding)
    with pytest.raises(dataclasses.FrozenInstanceError):
        finding.kind = "other"  # type: ignore[misc]


def test_places_are_those_of_the_text_that_was_given() -> None:
    text = "\u200b\u200bİ \u00ad2\u200b024: ja\u200bne@exa\ufeffmple.com\u200b!"
    (finding,) = personal_data(text)
    assert text[finding.start : finding.end] == "ja\u200bne@exa\ufeffmple.com"


def test_lone_surrogates_are_no_trouble() -> None:
    assert found("\ud800 jane@example.com \udfff") == [("email", "jane@example.com")]


@pytest.mark.parametrize("size", [64, 1000, 4096])
def test_pieces_find_what_the_whole_does(size: int) -> None:
    line = "Jane, jane@example.com, 0171 2345678, DE89370400440532013000, 4111 1111 1111 1111; nothing 2024-01-02.\n"
    text = line * 60
    pieces = [one for piece in in_pieces(personal_data, text, size=size) for one in piece]
    assert pieces == personal_data(text)
    assert len(pieces) == 4 * 60


def test_pieces_of_nothing() -> None:
    assert list(in_pieces(personal_data, "")) == [[]]
