"""The demo world's vocabulary, as data; how it becomes text is in `world` and `english`.

Every name of a person, a town or a village is invented.
"""


def listed(text: str) -> list[str]:
    """The words of a line, or its phrases where bars part them."""
    return text.split("|") if "|" in text else text.split()


PEOPLE = listed(
    "Mira Tobin Selka Orin Pelda Junor Kesti Varo Lunet Dagrin Feora Hesk Ilvan Jorun Kalda Lomir "
    "Nessa Osrin Panya Quillo Rodan Sorrel Tamsin Uldin Vesna Wendel Yorin Zelna Brannoc Cerin "
    "Doru Elska Fenno Gilda Harn Imra Jasko Kirit Lorvi Moro Nilo Betka"
)
TOWNS = listed(
    "Tolmar Briskel Corvale Dunmere Elbrook Fallowin Grimsted Harrowick Inverlea Kestby Larkholm "
    "Mossford Northwick Penhallow Quenby Ravensey"
)
COUNTRIES = ["Arvonia", "Belmark", "Castria", "Dorland", "Estria", "Falmora"]
RIVERS = ["Alder", "Brine", "Cobble", "Drift", "Ember", "Fern", "Gild", "Heron"]
CRAFTS = ["clocks", "cheese", "ropes", "bells", "lace", "boats", "honey", "glass", "hats", "drums"]
JOBS = listed(
    "baker sailor teacher doctor farmer painter tailor miller gardener singer carpenter fisher "
    "librarian smith"
)
PETS = ["cat", "dog", "parrot", "goat", "rabbit", "tortoise", "pony", "duck", "frog", "hen"]
COLOURS = listed("red blue green yellow white black purple orange brown pink")
FOODS = listed("soup bread apples pancakes rice plums pie beans pears noodles cherries carrots")

NUMBERS = listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen"
)

VILLAGES = listed("Morva Teppin Galdo Wendle Hobley Skerrow Piltow Dravik Ulver Cobbin")
EVERYDAY_GROUPS = [
    "grandmothers",
    "tall people",
    "twins",
    "people with glasses",
    "left-handed people",
    "drummers",
    "cat owners",
    "bus drivers",
]
TRAITS = [
    ("lazy", "busy"),
    ("loud", "quiet"),
    ("mean", "generous"),
    ("clumsy", "careful"),
    ("rude", "polite"),
    ("messy", "tidy"),
    ("grumpy", "cheerful"),
    ("silly", "clever"),
    ("slow", "quick"),
    ("timid", "brave"),
]
NONSENSE = listed("soup bread rice pie honey glass lace cheese plums beans")

KIND = {
    "help a neighbour": "helping a neighbour",
    "share your lunch": "sharing your lunch",
    "carry a heavy bag for someone": "carrying a heavy bag for someone",
    "feed a hungry cat": "feeding a hungry cat",
    "say thank you": "saying thank you",
    "visit a sick friend": "visiting a sick friend",
    "give back a lost purse": "giving back a lost purse",
    "wait for a slow friend": "waiting for a slow friend",
    "hold the door open": "holding the door open",
    "water the plants of a neighbour": "watering the plants of a neighbour",
    "tell the truth": "telling the truth",
    "read to a child": "reading to a child",
    "mend a broken toy": "mending a broken toy",
    "listen to a sad friend": "listening to a sad friend",
    "plant a tree for the school": "planting a tree for the school",
    "invite a new pupil to the game": "inviting a new pupil to the game",
}
CRUEL = {
    "push people on the stairs": "pushing people on the stairs",
    "hide the shoes of a friend": "hiding the shoes of a friend",
    "take the cake of a child": "taking the cake of a child",
    "tell lies about a neighbour": "telling lies about a neighbour",
    "break the toy of a brother": "breaking the toy of a brother",
    "pull the tail of a cat": "pulling the tail of a cat",
    "read the letters of a sister": "reading the letters of a sister",
    "throw mud at clean washing": "throwing mud at clean washing",
    "cheat at cards": "cheating at cards",
    "laugh at a new pupil": "laughing at a new pupil",
    "steal apples from a garden": "stealing apples from a garden",
    "wake a tired baby": "waking a tired baby",
    "scare the ducks with stones": "scaring the ducks with stones",
    "blame a friend for a mistake": "blaming a friend for a mistake",
    "lock a dog outside in the rain": "locking a dog outside in the rain",
    "trip a runner in a race": "tripping a runner in a race",
}
