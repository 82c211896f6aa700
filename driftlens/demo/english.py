"""Plain English from a small grammar: everyday sentences, stories, scraps of code.

A rule is a list of alternatives in which `<name>` stands for another rule. Nothing here
knows the facts of the world: a story is told about whatever cast it is given.
"""

import re
from collections.abc import Mapping, Sequence
from random import Random

from .words import listed

Rules = Mapping[str, Sequence[str]]

_SLOT = re.compile(r"<(\w+)>")


def expand(text: str, rules: Rules, rng: Random) -> str:
    """`text` with every slot replaced by a draw from its rule, until none is left."""
    while match := _SLOT.search(text):
        text = text[: match.start()] + rng.choice(rules[match[1]]) + text[match.end() :]
    return text


def finish(text: str) -> str:
    """`text` with capitals at the start of its sentences, and *an* before a vowel."""
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return re.sub(r'(^"?|[.!?]"? "?|, "|\n"?)([a-z])', lambda m: m[1] + m[2].upper(), text)


def plain(rng: Random) -> str:
    """One to four everyday sentences, some with coined words, or at times a scrap of code."""
    if rng.random() < 0.15:
        return expand("<code>", RULES, rng)
    count = rng.choice((1, 1, 2, 2, 3, 4))
    kinds = ("<sentence>", "<sentence>", "<clause>.", "<clause>, <link> <clause>.")
    text = finish(" ".join(expand(rng.choice(kinds), RULES, rng) for _ in range(count)))
    return coin(text, rng) if rng.random() < 0.3 else text


def coin(text: str, rng: Random) -> str:
    """`text` with a third of its longer words replaced by coined ones, its capitals kept.

    A model that has met only a closed vocabulary is certain that no other word can come.
    """

    def swap(match: re.Match) -> str:
        if rng.random() < 0.67:
            return match[0]
        first, last = rng.choice(_WORDS), rng.choice(_WORDS)
        word = first[: rng.randint(1, 4)] + last[-rng.randint(2, 5) :]
        return word.capitalize() if match[0][0].isupper() else word

    return re.sub(r"\b[A-Za-z][a-z]{3,}", swap, text)


def story(cast: Mapping[str, str], rng: Random) -> str:
    """A little story: an opening, a trouble, a helper and an end.

    Args:
        cast: Words for `hero`, `they`, `them`, `their`, `friend`, `town`, `pet` and `colour`.
        rng: Where the draws come from.
    """
    rules = {**RULES, **{name: [word] for name, word in cast.items()}}
    # What a story says twice is drawn once.
    rules |= {
        "lost": [rng.choice(RULES["thing"])],
        "spot": [rng.choice(RULES["where"])],
        "asked": [rng.choice(RULES["animal"])],
        "adult": [rng.choice(RULES["person"])],
    }
    parts = ["<opening>", "<trouble>", "<search>", "<helper>", "<end>"]
    if rng.random() < 0.5:
        parts.insert(1, "<detail>")
    if rng.random() < 0.3:
        parts.remove("<search>")
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        parts[-1:-1] = ["<again>", "<search>", "<helper>"]
    return finish(expand(" ".join(parts), rules, rng))


RULES: dict[str, list[str]] = {
    "sentence": [
        "the <adjective> <animal> <moved> <where>.",
        "the <animal> <moved> <where> and the <animal> <moved> <where>.",
        "a <adjective> <person> <used> the <thing> <when>.",
        "the <person> <used> a <adjective> <thing> and a <thing>.",
        "<name> <used> the <thing>, but <name> did not.",
        "<name> and <name> <went> <where> <when>.",
        "there is a <adjective> <thing> <where>.",
        "there are <few> <things> <where>, and <few> of them are <adjective>.",
        "it was <weather> <when>, so the <person> <went> <where>.",
        "if it is <weather> <later>, we will <plan>.",
        "when the <person> came home, the <thing> was <where>.",
        "because the <thing> was <adjective>, <name> could not <plan>.",
        "the <thing> is <more> than the <thing>.",
        "my <relative> likes to <plan> <often>.",
        "my <relative> says that the <person> is very <mood>.",
        "I do not know where the <thing> is.",
        "I would like a <adjective> <thing> for my <relative>.",
        "do you want to <plan> with me <later>?",
        "where did you put the <thing>? it is <where>.",
        "why is the <person> <mood>? because the <thing> is <adjective>.",
        "what a <adjective> <thing> that is!",
        "please put the <thing> <where>.",
        "never <plan> when it is <weather>.",
        '"<said>," said the <person>.',
        '"<said>," <name> said, "<said>."',
        'the <person> asked, "<question>"',
        "the <vehicle> leaves at <hour> and comes back at <hour>.",
        "on <digit> <month> <year>, the <person> <went> <where>.",
        "the <thing> costs <digit> coins, and the <thing> costs <few>.",
        "she has <few> <things>; he has only one.",
        "<weekday> is <mood_day>, so we <plan> all day.",
        "he <often> <does> before breakfast.",
        "she <does> and then she <does>.",
        "we ate <food> and <food>, and we drank <drink>.",
        "the <food> smells good, but the <drink> is too <heat>.",
        "a <kind_a> is a kind of animal.",
        "a <kind_b> is a kind of tool.",
        "a <kind_c> is a kind of fruit.",
        "the opposite of <opposite>.",
        "the day after <day_after>.",
        "<fact_general>.",
        "the <thing> is made of <material>.",
        "it takes <few> days to walk from the <place> to the <place>.",
        "the old <place> stands near the <place>, not far from the <place>.",
        "many years ago, a <person> built a <adjective> <place> here.",
        "no one has seen the <animal> since <weekday>.",
        "both the <person> and the <person> were <mood>.",
        "first <name> <used> the <thing>; after that, <name> <went> <where>.",
        "it is not the <thing> that is <adjective>, it is the <thing>.",
        "the <person> who <used> the <thing> is my <relative>.",
        "they <went> <where>, although it was <weather>.",
        "in <season> the <natural> is <adjective>, and the days are <length>.",
    ],
    "adjective": listed(
        "old new small big red blue green brown black white wooden heavy light clean dirty broken "
        "round square long short soft hard warm cold wet dry empty full strange lovely quiet loud "
        "striped frozen folded rusty boiled melted bright dark thin thick cheap sweet"
    ),
    "animal": listed(
        "cat dog horse cow sheep goat bird mouse fox duck hen frog rabbit bee fish owl donkey "
        "spider wolf bear pony snail goose squirrel crow"
    ),
    "person": listed(
        "woman man girl boy teacher farmer baker doctor nurse driver king queen child neighbour "
        "sailor cook student painter writer shepherd visitor stranger postman musician grandmother "
        "grandfather"
    ),
    "relative": listed("mother father sister brother aunt uncle cousin friend grandmother"),
    "name": listed(
        "Anna Ben Clara David Emma Fred Grace Henry Ida Jack Kate Leo Mary Nick Ruth Sam Tom"
    ),
    "thing": listed(
        "book cup lamp chair table box key letter spoon basket clock coat hat shoe blanket ball "
        "bottle bell rope ladder window door picture knife plate candle umbrella map pencil bag "
        "kettle mirror drum kite bucket broom pillow button ring stone"
    ),
    "things": listed(
        "books cups lamps chairs boxes keys letters spoons baskets shoes balls bottles candles "
        "apples eggs stones pencils flowers birds coins stamps leaves"
    ),
    "place": listed(
        "house bridge mill church school market station tower garden farm shop library harbour "
        "castle inn forest lake hill village"
    ),
    "natural": listed("forest lake field river sky garden hill sea road valley"),
    "where": listed(
        "under the table|on the roof|behind the door|in the garden|near the river|to the market|"
        "by the window|at the station|over the bridge|across the field|in the kitchen|up the hill|"
        "into the forest|along the road|beside the old well|in the box|on the shelf|to the sea|"
        "around the corner|through the gate|between two trees|inside the barn"
    ),
    "when": listed(
        "yesterday|last night|this morning|in the evening|on Monday|on Sunday|every day|last week|"
        "in the winter|in the summer|at noon|after lunch|before school|a long time ago|at six "
        "o'clock|all day|one day|today"
    ),
    "later": listed("tomorrow|tonight|next week|on Friday|after school|in the afternoon|soon"),
    "often": listed("often|always|sometimes|never|usually|rarely"),
    "weather": listed("raining|sunny|cold|hot|windy|snowing|dark|foggy|warm|too late|very wet"),
    "season": ["spring", "summer", "autumn", "winter"],
    "length": ["long", "short", "warm", "cold"],
    "moved": listed(
        "ran|jumped|walked|slept|sat|hid|swam|flew|climbed|waited|played|danced|fell|came|went|"
        "looked|stood|rested|rolled"
    ),
    "used": listed(
        "found|lost|bought|sold|broke|carried|dropped|painted|cleaned|opened|closed|made|mended|"
        "took|brought|saw|wanted|liked|kept|hid|washed|gave away|forgot|drew|needed"
    ),
    "went": listed("went|walked|ran|drove|came|rode|travelled|hurried|moved"),
    "does": listed(
        "reads the paper|drinks tea|feeds the hens|sings a song|opens the shop|sweeps the floor|"
        "writes a letter|goes for a walk|bakes bread|washes the cups|calls a friend|plays the "
        "piano|waters the flowers|makes the beds|looks out of the window|puts on a coat"
    ),
    "plan": listed(
        "go home|play in the garden|read a book|swim in the lake|bake a cake|visit the museum|ride "
        "a bike|cook dinner|sleep|sing|learn to draw|walk to the mill|catch the bus|fly a kite|"
        "write a letter|buy new shoes|climb the tower|stay inside|work in the field|watch the birds"
    ),
    "few": listed("two three four five six seven eight nine ten twelve many some"),
    "digit": [str(n) for n in range(1, 29)],
    "year": [str(n) for n in range(1950, 2025)],
    "hour": [f"{h}:{m}" for h in range(1, 13) for m in ("00", "15", "30", "45")],
    "month": listed(
        "January February March April May June July August September October November December"
    ),
    "weekday": listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "mood_day": listed("a holiday|market day|my birthday|the best day|a long day"),
    "mood": listed(
        "happy sad tired angry hungry proud afraid bored kind busy polite cheerful quiet"
    ),
    "more": listed(
        "older newer smaller bigger heavier lighter cleaner longer shorter softer warmer colder "
        "better worse cheaper"
    ),
    "vehicle": listed("train bus boat ship ferry tram"),
    "food": listed("bread soup cheese rice eggs fish cake apples beans potatoes honey nuts pears"),
    "drink": listed("tea milk water coffee juice lemonade"),
    "heat": ["hot", "cold", "sweet", "warm", "sour"],
    "material": listed("wood glass iron paper wool stone silver leather clay gold"),
    "kind_a": listed("cat dog horse goose fox owl bear frog snail donkey"),
    "kind_b": listed("hammer saw spade broom needle rake file axe"),
    "kind_c": listed("pear plum cherry lemon apple peach grape melon"),
    "opposite": listed(
        "hot is cold|big is small|old is new|long is short|up is down|open is closed|full is empty|"
        "light is heavy|wet is dry|early is late|loud is quiet|near is far|good is bad|soft is hard"
    ),
    "day_after": listed(
        "Monday is Tuesday|Tuesday is Wednesday|Wednesday is Thursday|Thursday is Friday|Friday is "
        "Saturday|Saturday is Sunday|Sunday is Monday"
    ),
    "fact_general": listed(
        "snow is white|grass is green|the sun rises in the east|ice is frozen water|a week has "
        "seven days|a year has twelve months|cows eat grass|bees make honey|hens lay eggs|fish "
        "live in water|birds have wings|a spider has eight legs|a dog has four legs|stones are "
        "hard|fire is hot|sugar is sweet|lemons are sour|the night is dark|boats float on water|"
        "we hear with our ears|we see with our eyes|a clock shows the time|wood comes from trees|"
        "milk comes from cows|bread is made of flour"
    ),
    "said": listed(
        "I am sorry|come with me|it is late|that is not mine|we must go home|thank you very much|"
        "I have never been there|you are right|the soup is ready|I will help you|look at that|"
        "give me the <thing>|I can see the <animal>|the <person> is here|do not touch the <thing>"
    ),
    "question": listed(
        "where is the <thing>?|what time is it?|who took my <thing>?|may I come in?|how are you?|"
        "have you seen the <animal>?|are you <mood>?|is the <place> far?"
    ),
    "code": [
        "<scrap><sign><scrap> <scrap><sign> <scrap>",
        "<scrap> <scrap> <sign> <scrap><sign>\n    <scrap> <scrap><sign><scrap>\n<scrap><sign>",
        "<key> <var> <key> <var>:\n    <func>(<noun>.<verb>)\n    <key> <scrap>",
        "<key> (<var> < <digit>) {\n    <var> <sign> <digit>;\n}",
        "<var> = [<var> <key> <var> in <noun>s]",
        "<noun>,<noun>,<noun>\n<name>,<digit>,<year>\n<name>,<digit>,<year>",
        '<func>("<noun>", <digit>.<digit>) # <verb> <np>',
        "<noun>_<verb>=$((<var> + <digit>)); echo $<var>",
        "the <noun> cost <digit>.<digit> in <year> and <digit>% more in <year>.",
        "<digit> <month> <year>: <digit> <noun>s at <digit>.<digit> each, <digit>,000 in all",
        "Q: what is <np>?\nA: it is <np>.",
        "<var> = <digit>",
        "<var> = <var> + <digit>",
        "print(<var>)",
        'print("<said>")',
        "def <func>(<var>, <var>):\n    return <var> + <var>",
        "def <func>(<var>):\n    return <var> * <digit>",
        "for <var> in range(<digit>):\n    print(<var>)",
        "if <var> == <digit>:\n    <var> = <func>(<var>)",
        "<things> = [<digit>, <digit>, <digit>]\nprint(len(<things>))",
        '{"name": "<name>", "age": <digit>}',
        "import math\n<var> = math.sqrt(<digit>)",
        "- <thing>\n- <thing>\n- <thing>",
        "1. <plan>\n2. <plan>\n3. <plan>",
        "Name: <name>\nDate: <digit> <month> <year>\nTime: <hour>",
        "Dear <name>,\nthank you for the <thing>.\nYours, <name>",
    ],
    "var": listed("x y n total count value item i"),
    "func": listed("add double first get_item main run size"),
    "clause": [
        "<np> <vp>",
        "<np> <vp>",
        "<np> <vp> <pp>",
        "<pp> <np> <vp>",
        "<np> <modal> <verb> <np>",
        "<np> <modal> not <verb> <np> <pp>",
        "<np> has <done> <np>",
        "<np> had never <done> <np>",
        "<np> was <done> by <np>",
        "<np> were <done> <pp>",
        "<np> is <quality>, and <np> is <quality>",
        "<np> is as <quality> as <np>",
        "there was <np> <pp>",
        "it is <quality> to <verb> <np>",
        "<subject> <thought> that <np> <vp>",
        "<manner>, <np> <vp>",
        "<subject> <modal> <verb> it <manner>",
    ],
    "np": [
        "<subject>",
        "<det> <noun>",
        "<det> <noun>",
        "<det> <quality> <noun>",
        "<det> <adjective> <noun>",
        "<det> <noun> of <det> <noun>",
        "<det> <noun> <pp>",
        "<det> <noun> that <vp>",
        "<det> <noun> and <det> <noun>",
        "<name>",
        "<noun>s",
        "<few> <noun>s",
    ],
    "vp": ["<past> <np>", "<past> it <manner>", "was <quality>", "<past> <np> <pp>"],
    "pp": ["<prep> <det> <noun>", "<prep> <det> <quality> <noun>", "<where>", "<when>"],
    "det": listed(
        "the the the the a a a this that his her my our your their its every each no some"
    ),
    "prep": listed(
        "in on at with without for from to by of under over behind before after between against "
        "about through during into across near like since until above below beyond"
    ),
    "subject": listed("I you he she it we they someone everyone nobody who one people"),
    "modal": listed("will would can could may might must should shall"),
    "link": listed("and and but so because although while if when until as since or where before"),
    "thought": listed("thought said knew believed heard felt hoped wrote saw forgot learned"),
    "manner": listed(
        "slowly|quickly|again|at once|of course|perhaps|almost|only|still|already|just|then|now|"
        "here|there|very well|at last|in fact|even so|too|once more|never|always|later|together|"
        "alone|easily|hardly|nearly|instead|for example|however|as usual|rather late|much more"
    ),
    "verb": listed(
        "see make take give find know keep tell hear hold bring leave begin show try call need "
        "turn move follow stop change play run believe meet include continue set learn lead "
        "understand watch create speak read allow add spend grow open walk win offer remember love "
        "consider appear buy wait serve die send expect build stay fall cut reach kill remain use "
        "ask work seem help start write provide sit stand lose pay put mean become say"
    ),
    "past": listed(
        "saw made took gave found knew kept told heard held brought left began showed tried called "
        "needed felt turned moved followed stopped changed played ran believed met had set learned "
        "led watched created spoke read allowed added spent grew opened walked won offered loved "
        "remembered considered bought served sent expected built cut reached used asked helped "
        "started wrote lost paid put became sold rose beat drove covered signed counted wanted"
    ),
    "done": listed(
        "seen made taken given found known kept told heard held brought left shown called turned "
        "moved followed stopped changed played met set learned watched read added spent opened won "
        "offered remembered bought served sent built cut reached used asked helped written lost "
        "paid put sold driven covered signed counted broken closed forgotten eaten named"
    ),
    "noun": listed(
        "time year way day man world life hand part child eye woman place work week case point "
        "company number group problem fact night street word question school state family student "
        "country system program hour game line end member law car city name team minute idea body "
        "back parent face level office door health person art war history party result morning "
        "reason research girl boy moment air teacher force foot age policy music mind sense thing "
        "view price rate road drug letter table plan cost field step size power room water money "
        "story month lot right study book job business issue side kind head house service friend "
        "father mother hour path coast floor wall tree leaf wind rain snow frost storm sun star "
        "island coat ticket class page paper answer order sound colour voice song picture film "
        "doctor guard secretary lecture degree metre litre inhabitant capital border mountain "
        "valley beach shell branch stone metal wool cotton salt sugar flour oil recipe trip news "
        "tune crack tower step vote half third piece rope weight sister brother cousin uncle hall"
    ),
    "quality": listed(
        "good new first last long great little own other old right big high different small large "
        "next early young important few public bad same able best better sure clear free true "
        "real full special easy hard late strong possible certain open common poor ready simple "
        "happy wrong past main fine nice close perfect empty quiet deep wide modern famous second "
        "third national human local social single final general cold dark red short whole worth"
    ),
    "sign": [*"()[]{}=+-*/%&|;:,.!?#$@_~'", "->", "==", "=>", "();", "&&", "+=", "**"],
    "scrap": ["<var>", "<digit>", "<func>", "<noun>", "<verb>", "<sign>", "<sign>", "<key>"],
    "key": listed(
        "if else for while return def class import from print true false null None self int str "
        "let var const function select where order by in is not and or try except with as lambda"
    ),
    "opening": [
        "once upon a time, <hero> lived in <town> with a <pet>.",
        "<hero> had a <pet> and a <colour> <lost>.",
        "one <weather_calm> morning, <hero> left the house in <town>.",
        "in <town> there lived a child called <hero>.",
        "<hero> and <friend> were good friends.",
        "there was once a <mood> child whose name was <hero>.",
        "<hero> of <town> had a little <pet>.",
    ],
    "weather_calm": ["sunny", "cold", "windy", "quiet", "warm"],
    "detail": [
        "<they> liked everything that was <colour>.",
        "the <pet> followed <them> everywhere.",
        "every day <they> <went> <where> with the <pet>.",
        "<friend> lived next door.",
        "<their> <lost> was old, but <they> liked it.",
        "people said that <they> was always <mood>.",
    ],
    "trouble": [
        "one day <they> lost <their> <lost>.",
        "one day the <pet> ran away.",
        "but the <lost> was gone, and <they> was sad.",
        "then the wind took the <lost> away.",
        "on the way <they> dropped the <lost> into the river.",
        "suddenly it began to rain, and <they> could not find the <lost>.",
        "a <animal> took the <lost> and <moved> <where>.",
    ],
    "again": [
        "the next day it was gone again.",
        "but soon they heard that the <pet> was lost too.",
        "the next morning the <lost> was not there.",
        "then a <mood> <person> came and took the <lost>.",
    ],
    "search": [
        "<they> looked <spot>, but it was not there.",
        "<they> looked <where> and <where>.",
        "<they> asked a <adult>, but the <adult> did not know.",
        "<they> asked the <asked>, but the <asked> only slept.",
        '<they> asked everyone, "where is it?"',
        "<they> waited all day and all night.",
    ],
    "helper": [
        'then <friend> came. "I will help you," said <friend>.',
        "<friend> heard this and <went> <where>.",
        "the <pet> <moved> <spot>, and there was the <lost>.",
        'a <adjective> <animal> said, "look <spot>."',
        "then <hero> saw the <person> <where>.",
        "<friend> gave <them> a <adjective> <thing>.",
        "together <hero> and <friend> looked <spot>.",
    ],
    "end": [
        "<they> found it, and everyone was happy.",
        "<hero> thanked <friend>, and they went home to <town>.",
        "in the evening <they> slept well, and so did the <pet>.",
        "from that day on, <hero> always kept the <lost> <spot>.",
        'so <they> went home and said, "what a day!"',
        "and <hero> never forgot that day.",
        "then they ate <food> together, and the <pet> had some too.",
    ],
}

_WORDS = [
    word for name in ("noun", "verb", "past", "quality", "thing", "name") for word in RULES[name]
]
