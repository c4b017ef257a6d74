r"""Words behind a number: units from a closed list, and number words as numbers.

A word that is on no list is never dropped: `3 halved`, `3 at least` and `3 pi` are not 3. `7 million` is 7000000 and `3
sevenths` is 3/7.
"""

import re
from fractions import Fraction
from functools import lru_cache

_WORD = re.compile(r"[A-Za-z]+")
_MEASURES = (
    ("in", "inch", "inches"), ("ft", "foot", "feet"), ("yd", "yds", "yard", "yards"), ("mi", "mile", "miles"),
    ("mm", "millimeter", "millimeters", "millimetre", "millimetres"),
    ("cm", "centimeter", "centimeters", "centimetre", "centimetres"),
    ("m", "meter", "meters", "metre", "metres"), ("km", "kms", "kilometer", "kilometers", "kilometre", "kilometres"),
    ("s", "sec", "secs", "second", "seconds"), ("min", "mins", "minute", "minutes"),
    ("h", "hr", "hrs", "hour", "hours"), ("day", "days"), ("week", "weeks"), ("month", "months"),
    ("year", "years", "yr", "yrs"), ("dollar", "dollars", "usd", "buck", "bucks"), ("cent", "cents"),
    ("euro", "euros"), ("mg", "milligram", "milligrams"), ("g", "gm", "gms", "gram", "grams"),
    ("kg", "kgs", "kilo", "kilos", "kilogram", "kilograms"), ("lb", "lbs", "pound", "pounds"),
    ("oz", "ounce", "ounces"), ("ton", "tons", "tonne", "tonnes"),
    ("degree", "degrees"), ("degree c", "degrees c", "degree celsius", "degrees celsius", "celsius"),
    ("degree f", "degrees f", "degree fahrenheit", "degrees fahrenheit", "fahrenheit"),
    ("radian", "radians", "rad"), ("%", "percent"),
    ("mph", "mi h", "mi hr", "mile hour", "miles hour", "mile per hour", "miles per hour"),
    ("kph", "kmh", "kmph", "km h", "km hr", "km per hour", "kilometer per hour", "kilometers per hour"),
    ("m s", "m sec", "meter second", "meters second", "meter per second", "meters per second"),
    ("l", "liter", "liters", "litre", "litres"), ("ml", "milliliter", "milliliters", "millilitre", "millilitres"),
    ("gal", "gallon", "gallons"), ("qt", "quart", "quarts"), ("pt", "pint", "pints"), ("acre", "acres"),
    ("hectare", "hectares"), ("hz", "hertz"), ("mb",), ("gb",), ("kb",), ("kw", "kilowatt", "kilowatts"), ("kwh",),
)  # fmt: skip
SAME_UNIT = {name: group[0] for group in _MEASURES for name in group}
_TIMES = frozenset(SAME_UNIT[name] for name in ("second", "minute", "hour", "day", "week", "month", "year"))
LONE = frozenset("mgshlLNJWV")  # letters that are units inside \text{..}, in just this case
_COUNTED = frozenset(
    _WORD.findall(
        """
    accident acorn action adult album alligator amoeba animal ant apartment app apple apron arm arrangement arrow
    article artifact artwork athlete attendee avocado award baby bacteria bag bagel baguette ball balloon banana band
    bandage baps bar barnacle barrel baseball bases basket basketball bat batch battery bead beaker bean bear bed bee
    beetle bell berry bicycle bike bill bird biscuit blanket block blueberry board boat bolt bone bonnet book bookcase
    boot bottle bottlecap bounce bouquet bowl box boxes boy bracelet branch bread brick bridge brother brownie bucket
    bug building bulb bull bunch bundle bunny burger burrito bus buses bush business butterfly button cab cabin
    cabinet cake calf call calorie camel camper can candle candy canoe cap capsule car carat card carpet carriage
    carrot cart carton case cat caterpillar cavity cell chain chair chances chapter character cheese cherry chess
    chick chicken child children chip chocolate choice circle citizen class classes classmate claw clip clock cloud
    clown club coach coat coconut code coffee coin color colour column combination comic committee composer computer
    cone consonant container contestant cookie copy corner couch country county couple court cousin cow crab cracker
    crate crayon credit cricket crop crossing crow cub cubes cucumber cup cupcake cupful customer cut dance dap deer
    demerit desk dessert diagonal diamond dice die differences digit dime dinner dish dishes divisor doctor dog doll
    dolphin domino dominoes donut door doughnut download dragon drawing dress dresses drink driver drop drum duck
    duckling dumpling ear earring edge egg element elephant elf elves email employee engine envelope episode eraser
    error euro event exam eye face fact factors family fan farmer father fawn feather fence file finger fire firework
    fish fishes flag flight floor flower fly foal follower fork fox foxes friend frog fruit function game gate gear
    geese gem gemstone gift giraffe girl glass glasses glove goal goat gold goldfish goose grade grain gram
    grandchildren grape graphs group guest guitar gumball guppy hairband hamburger hamster hand handshake hat head hen
    highlighter hit hole home hoodie hop horse hotdog house human individual inning insect instance instrument integer
    integers item jacket jar jellybean job jogger joke joule joules juice jump kernel key kid kind kitten knife knives
    koala krona ladder lady lamb lamp land lap lattice lawyer leaf leaves leg lego lemon lesson letter level light
    line lion lizard llama load loaf loaves lock logs lollipop loops lunch machine magazine magnet man mango mangoes
    map marble mark marker match matches matchstick meal meatball medal meeting melon member men message mice mile
    minnow mistake model money monkey mother motorcycle mountain mouse mouth movie muffin multiples mushroom musician
    nail name napkin necklace neighbor nest net newspaper newton newtons nickel night node note notebook novel number
    nurse nut object octopus onion operation option orange orchid ordering orderly orders outcome outfit owl oyster
    pack package packet page pail painting pancake panda panel paper paperclip parent park part participant
    particle partition party pass passenger past pastry patch path patient pattern peach pear pearl pebble pen pence
    pencil pencilcase penguin pennies penny people pepper permutation person peseta pesetas peso pet petal pfennig
    phone photo photograph piano pick picture pie piece pig pigeon pill pillow pin pirate pitch pixel pizza place
    plane planet plank plant plate player plum pocket poem points pole polygon polynomial pony pool popsicle portion
    possibility post postcard poster pot potato potatoes prescription present primes prize problem products program
    project pumpkin pupil puppet puppy purse push pushup puzzle pyramid quail question queue quilt quotients rabbit
    raccoon race radish raisin rat reader recipe record rectangle refill region report resident result revolution
    reward rhombus ribbon rice ride rider ring roll room rooster roots rope rose round route row rower rug ruler run
    rungs rupee rupees sack sailor salad sale sandwich sandwiches sausage scale scarf scarves scholar school scientist
    scoop scores screw seal seashell season seat section seed segment sentence sequence serving session set shape
    shark sheep sheet shelf shell shelves shift ship shirt shoe shop shot side sign singer sister situp skier skip
    skirt slabs slice slot snack snail snake snowflake soccer sock soda soldier solution song sophomore space
    spaceship spectator spider spoke spoon spoonful spot squares squirrel stair stamp star state statue steak stem
    step stick sticker stitch stone stop store story storybook straw strawberry street string stripe stroke stroller
    student subcommittee subset suitcase sums sunflower sunglasses survey swan sweater sweet swimmer swing syllable
    table tablespoon tablet tack tadpole tangerine tape target task teabag teacher team teammate tear teaspoon teddy
    teeth television terms test text textbook thing thumbtack tick ticket tie tiger tile time tin tip tire title toe
    token toll tomato tomatoes tooth topping towel tower town toy track trade trader trail train tray treat tree
    triangle trip triples triplet trophy truck tshirt tub tube tulip turkey turn turtle twig twin twins umbrella
    unicorn unit units user value van vase vegetable vehicle version vertex vertices video visit visitor visitors volt
    volts volunteer vote voter vowel wall walnut watch water watermelon watt watts wave way weapon wear weed whale
    wheel whisker widget wife win wind window wing winner wire wolf wolves woman women word worker workout worm yen
    yuan zebra zeroes zeros
    """
    )
)
_QUALIFIERS = frozenset(
    _WORD.findall(
        """
    per square cubic sq cu a an the of each every total different distinct possible positive real right red blue green
    yellow orange purple pink white black brown new old small large big little long tall wide deep high away left
    remaining altogether chocolate toy baby male female adult wooden prime whole ordered even odd gold silver unique
    extra additional english rational complex fluid us american in isosceles equilateral similar congruent lattice
    """
    )
)
_VALUE_WORDS = frozenset(
    _WORD.findall(
        "and or not but times plus minus over percent if when"
        " where for is are to than less more choose mod base undefined"
        " sqrt frac solutions both either about around squared"
        " cubed factorial factorials double triple twice thrice negative"
        " positive below above no none never wrong incorrect"
        " false except without pi point halved doubled tripled quartered"
        " at least most up down off root roots power sin"
        " cos tan log ln exp minus inverse reciprocal squared approximately"
        " nearly almost under beyond between by with per"
    )
)
SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "lakh": 10**5, "crore": 10**7, "gross": 144,
}  # fmt: skip
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "eleventh": 11, "twelfth": 12, "fifteenth": 15, "sixteenth": 16, "twentieth": 20,
    "hundredth": 100, "thousandth": 1000, "millionth": 10**6,
}  # fmt: skip
_ONES = _WORD.findall(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
)
_TENS = _WORD.findall("twenty thirty forty fifty sixty seventy eighty ninety")
_SMALL = {word: value for value, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
NUMERALS = (
    frozenset(_SMALL) | frozenset(SCALES) | frozenset(_PARTS)
    | {f"{word}s" for word in (*SCALES, *_PARTS) if not word.endswith("s")}
)  # fmt: skip

_PERCENT = re.compile(r"\s*\\?(?:%|\\text\{\s*per\s?cent\s*\}|\bper\s?cent\b)\s*\Z")
_TOKEN = re.compile(
    r"\\text\{[^{}]*\}|\\[A-Za-z]+|\\.|[A-Za-z]+\.?|\^\s*(?:\{\s*-?[123]\s*\}|-?[123](?!\d))|\s+|.", re.DOTALL
)
_OF_UNIT = re.compile(r"\\text\{[^{}]*\}|[A-Za-z]+\.?|\^.*|\s+|/|-|\\cdot", re.DOTALL)
_BEHIND = re.compile(r"\d.*[A-Za-z]|[A-Za-z].*\\text\{", re.DOTALL)
_OF_DAY = re.compile(r"[ap]\s*\.?\s*m\.?", re.IGNORECASE)
_INSIDE = re.compile(r"(?:[A-Za-z]+[.,]?|\^\s*(?:\{\s*-?[123]\s*\}|-?[123])|/|-|\s+|\\cdot)*")
_AMOUNT = r"(?:\d+\s+)?\d+\s*/\s*\d+|\d*\s*\\frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}|\d+(?:\.\d+)?|\.\d+"
_LITERAL = re.compile(r"(?:(\d*)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(?:(\d+)\s+)?(\d+)\s*/\s*(\d+))")
_SCALED = re.compile(
    rf"(?<![\d.}}A-Za-z_^])(?P<amount>{_AMOUNT})\s*(?P<open>\\text\{{)?\s*"
    rf"(?P<word>{'|'.join(sorted(NUMERALS - frozenset(_SMALL), key=len, reverse=True))})(?![A-Za-z])",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:how many|how much|number of)((?:\s+[A-Za-z]+){1,4})", re.IGNORECASE)


def is_unit(words: list[str]) -> bool:
    """Whether words behind a number name what is counted or measured, and say nothing of its size."""
    low = [word.lower() for word in words]
    text = " ".join(low)
    if text in SAME_UNIT:
        return True
    named = [word for word in low if _names(word)]
    return bool(named) and all(_names(word) or word in _QUALIFIERS or (word in "cf" and len(low) > 1) for word in low)


def _names(word: str) -> bool:
    stems = {word, word.removesuffix("s"), word.removesuffix("es")} | (
        {word[:-3] + "y"} if word[-3:] == "ies" else set()
    )
    return any(stem in SAME_UNIT or stem in _COUNTED for stem in stems) and len(word) > 1


def split_unit(text: str) -> tuple[str, str]:
    r"""A number and the unit behind it: `45 \text{ units}^2` is `45` and `units^2`; a percent sign is the unit `%`."""
    percent = _PERCENT.search(text)
    if percent and percent.start() > 0:
        return text[: percent.start()].strip(), "%"
    if not _BEHIND.search(text):
        return text, ""
    tokens = list(_TOKEN.finditer(text))
    start = len(tokens)
    while start > 0 and _OF_UNIT.fullmatch(tokens[start - 1][0]):
        start -= 1
    while start < len(tokens) and not (tokens[start][0].startswith("\\text") or _WORD.match(tokens[start][0])):
        start += 1
    in_text = next((place for place in range(start, len(tokens)) if tokens[place][0].startswith("\\text")), start)
    for place in dict.fromkeys((start, in_text)):  # of `2x\text{ cm}` x is no unit
        bare, unit = _amount_and_unit(text, tokens[place].start()) if 0 < place < len(tokens) else (text, "")
        if unit:
            return bare, unit
    return text, ""


def _amount_and_unit(text: str, place: int) -> tuple[str, str]:
    r"""The text before `place` and the unit from there on, "" where it is none.

    Words stand behind a digit; a unit in `\text{}` also behind letters, which are then no words themselves.
    """
    bare, unit = text[:place].strip(), text[place:]
    before = text[place - 1]
    if bare.endswith("/"):  # `15/hour` counts per hour
        bare, unit = bare[:-1].strip(), f"/{unit}"
        before = bare[-1:]
    in_text = unit.lstrip("/").startswith("\\text")
    letters = in_text and "\\text" not in bare
    if not re.search(r"[\dA-Za-z]" if letters else r"\d", bare) or bare[-1] in "+-*=<>^_":
        return text, ""
    named = _unit_words(unit) if in_text or before in "0123456789}) " else ""
    return (bare, named) if named else (text, "")


def _unit_words(unit: str) -> str:
    r"""`\text{ cm^2}` as `cm^2`, `\text{ m/s}` as `m s`, `/\text{hour}` as `per hour`; "" where this is no unit."""
    flat = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", unit).strip()
    if _OF_DAY.fullmatch(flat):
        return re.sub(r"\W+", " ", flat).strip().lower()
    lone = [word for word in _WORD.findall(re.sub(r"\\text\{[^{}]*\}|\\cdot", " ", unit)) if len(word) == 1]
    words = _WORD.findall(flat.replace("\\cdot", " "))
    inside = [word for word in words if len(word) == 1]
    degrees = len(words) > 1 and words[0].lower() in ("degree", "degrees")
    if lone and not degrees and len(words) == 1:
        return ""  # `3m` is three times m
    if not _INSIDE.fullmatch(flat) or any(letter not in LONE and not (degrees and letter in "CF") for letter in inside):
        return ""
    if not (is_unit(words) or all(word in LONE or _names(word.lower()) for word in words)):
        return ""
    power = re.search(r"\^\s*\{?\s*(-?[123])", flat)
    if power and not any(word.lower() in SAME_UNIT or word.startswith("unit") for word in words):
        return ""
    per = "per " if flat.startswith("/") else ""
    return per + " ".join(words).lower() + (f"^{power[1]}" if power and power[1] in "23" else "")


def units_agree(left: str, right: str) -> bool:
    """False where both name a unit that we know, and not the same one."""
    if not left or not right:
        return True
    days = [re.fullmatch(r"[ap] ?m", unit) is not None for unit in (left, right)]
    if all(days):
        return left[0] == right[0]
    rates = [unit.startswith("per ") for unit in (left, right)]
    left, right = left.removeprefix("per "), right.removeprefix("per ")
    names = [SAME_UNIT.get(_plain(unit)) for unit in (left, right)]
    if rates[0] != rates[1]:  # an hour, or a minute, is not `per hour`; but `60 per hour` may be miles
        of, per = names if rates[1] else names[::-1]
        return None in names or (per in _TIMES and of not in _TIMES)
    heat = {"degree", "degree c"}, {"degree", "degree f"}
    return _power(left) == _power(right) and (None in names or names[0] == names[1] or set(names) in heat)


def _plain(unit: str) -> str:
    words = unit.partition("^")[0].split()
    return " ".join(word for word in words if word not in ("square", "sq", "cubic", "cu"))


def _power(unit: str) -> int:
    """1 for a length, 2 for an area, 3 for a volume."""
    if unit.startswith(("cubic", "cu ")) or "^3" in unit:
        return 3
    return 2 if unit.startswith(("square ", "sq ")) or "^2" in unit else 1


@lru_cache(maxsize=4096)
def asked_units(problem: str) -> frozenset[str]:
    """Words that the problem itself counts: `How many dozens of eggs` makes `3 dozens` a plain 3."""
    words = {word.lower() for match in _ASKED.finditer(problem) for word in match[1].split()}
    return frozenset(word for word in words if len(word) > 2 and word not in _VALUE_WORDS and word not in _SMALL)


def gold_units(gold: str) -> frozenset[str]:
    r"""Words behind the number of a gold answer, `16\text{ daps}`: it is trusted to name a unit that is on no list."""
    match = re.fullmatch(r"[^A-Za-z]*\d[^A-Za-z]*\\(?:text|mbox|textrm|mathrm)\s*\{([A-Za-z. ]+)\}\s*\.?", gold.strip())
    words = {word.lower() for word in _WORD.findall(match[1])} if match else set()
    return frozenset() if words & (_VALUE_WORDS | NUMERALS) else frozenset(word for word in words if len(word) > 2)


def generic(text: str, words: frozenset[str]) -> str:
    """`text` with `units` for those of `words` behind a number that are on no list of ours, or are number words."""
    fresh = [word for word in sorted(words) if not is_unit([word])]
    if not fresh or not any(word in text.lower() for word in fresh):
        return text
    pattern = rf"(?<=\d)([\s\\,;!]*(?:\\(?:text|mbox|textrm|mathrm)\s*\{{)?\s*)(?:{'|'.join(fresh)})(?![A-Za-z])"
    return re.sub(pattern, r"\1 units", text, flags=re.IGNORECASE)


def scaled(text: str) -> str:
    r"""`text` with `7\text{ million}` as 7000000 and `3 sevenths` as `\frac{3}{7}`."""
    if not _SCALED.search(text):
        return text
    for _ in range(3):  # `2 hundred thousand`
        text = _SCALED.sub(_worked_out, text)
    return re.sub(r"\\text\{\s*\}", "", text)


def _worked_out(match: re.Match[str]) -> str:
    amount, word = _amount(match["amount"]), match["word"].lower()
    singular = word if word in SCALES or word in _PARTS else word.removesuffix("s")
    if amount is None or (word in _PARTS and word not in ("halves",) and amount != 1):  # `3 third`
        return match[0]
    value = amount * SCALES[singular] if singular in SCALES else amount / _PARTS[singular]
    return written(value) + (" \\text{" if match["open"] else " ")


def _amount(text: str) -> Fraction | None:
    match = _LITERAL.fullmatch(text)
    if not match:
        return Fraction(text)
    whole, top, bottom = match[1] or match[4] or 0, match[2] or match[5], match[3] or match[6]
    return Fraction(whole) + Fraction(int(top), int(bottom)) if int(bottom) else None


def written(value: Fraction) -> str:
    r"""A ratio as `5` or `\frac{3}{7}`."""
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def spelt_number(text: str) -> Fraction | None:
    """The value of an answer that is number words and nothing else: `minus four`, `twenty-one`, `three sevenths`."""
    words = [word.lower() for word in _WORD.findall(text)]
    if not words or len(words) > 9 or not re.fullmatch(r"[A-Za-z\s-]+", text):
        return None
    if words[0] in ("minus", "negative"):
        value = _spelt(words[1:]) if len(words) > 1 else None
        return None if value is None else -value
    return _spelt(words)


def _spelt(words: list[str]) -> Fraction | None:
    if words in (["half"], ["a", "half"]):
        return Fraction(1, 2)
    if words[0] == "half" and words[-1].removesuffix("s") in SCALES and len(words) - ("a" in words) == 2:
        return Fraction(SCALES[words[-1].removesuffix("s")], 2)
    part = words[-1] if words[-1] in _PARTS else words[-1].removesuffix("s")
    if part in _PARTS and len(words) > 1:
        top = _whole(words[:-1])
        return None if top is None or (words[-1] == part != "halves" and top != 1) else Fraction(top, _PARTS[part])
    return None if (value := _whole(words)) is None else Fraction(value)


def _whole(words: list[str]) -> int | None:
    total, current = 0, -1
    for word in words:
        scale = SCALES.get(word.removesuffix("s"))
        if word in _SMALL:
            if current >= 0 and not (
                current % 100 == 0 < current or (current % 100 >= 20 and _SMALL[word] < 10 > current % 10 == 0)
            ):
                return None
            current = max(current, 0) + _SMALL[word]
        elif scale == 100:
            current = (1 if current < 0 else current) * 100
        elif scale is not None:
            total, current = total + (1 if current < 0 else current) * scale, -1
        elif word == "a" and current < 0 and len(words) > 1:
            current = 1
        elif word != "and" or (current % 100 if current >= 0 else not total) or current == 0:
            return None  # `three hundred and five`, but `five and six` are two
    return total + max(current, 0) if total or current >= 0 else None
