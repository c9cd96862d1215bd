"""Word lists that several topics draw from."""

from __future__ import annotations

from random import Random

PEOPLE = (
    "Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ida", "Jonas", "Karin", "Leo", "Maria",
    "Nora", "Oscar", "Paula", "Quentin", "Rosa", "Sam", "Tina", "Uma", "Viktor", "Wendy", "Xenia", "Yusuf", "Zoe",
    "Alice", "Bob", "Charlie", "Diana", "Erik", "Fatima", "Georg", "Hana", "Ivan", "Julia", "Kenji", "Linda", "Mia",
    "Noah", "Olga", "Peter", "Rahul", "Sofia", "Tom", "Ursula", "Vera", "Will", "Yara", "Adam", "Bella", "Chen",
    "John", "Mary", "Max", "Lucy", "Omar", "Priya", "Kim", "Alex", "Jane", "Mike", "Sarah", "James", "Laura",
)  # fmt: skip

CITIES = (
    "Paris", "London", "Berlin", "Rome", "Madrid", "Vienna", "Oslo", "Lisbon", "Prague", "Dublin", "Athens", "Warsaw",
    "Zurich", "Geneva", "Milan", "Munich", "Hamburg", "Cologne", "Lyon", "Nice", "Porto", "Seville", "Naples", "Turin",
    "Tokyo", "Kyoto", "Osaka", "Seoul", "Beijing", "Shanghai", "Delhi", "Mumbai", "Bangkok", "Jakarta", "Sydney",
    "Melbourne", "Auckland", "Cairo", "Nairobi", "Lagos", "Cape Town", "New York", "Los Angeles", "Chicago", "Boston",
    "Seattle", "San Francisco", "Toronto", "Montreal", "Vancouver", "Mexico City", "Lima", "Bogota", "Santiago",
    "Buenos Aires", "Rio de Janeiro", "Dubai", "Istanbul", "Moscow", "Kyiv", "Helsinki", "Stockholm", "Copenhagen",
    "Brussels", "Amsterdam", "Rotterdam", "Antwerp", "Budapest", "Bucharest", "Sofia", "Zagreb", "Belgrade", "Denver",
    "Miami", "Dallas", "Houston", "Phoenix", "Austin", "Singapore", "Hong Kong", "Taipei", "Manila", "Hanoi", "Quito",
)  # fmt: skip

ANIMALS = (
    "fox", "cat", "dog", "bear", "owl", "horse", "rabbit", "mouse", "wolf", "lion", "tiger", "elephant", "frog",
    "turtle", "duck", "goat", "sheep", "cow", "pig", "hen", "swan", "whale", "dolphin", "penguin", "snail", "bee",
    "hedgehog", "squirrel", "monkey", "parrot", "crab", "deer", "camel", "robin", "badger", "otter", "zebra", "giraffe",
    "donkey", "dragon", "robot", "unicorn", "kitten", "puppy", "crow", "seal", "bird", "fish", "spider", "ant",
)  # fmt: skip

PERSONS = (
    "farmer", "sailor", "baker", "king", "queen", "princess", "pirate", "teacher", "doctor", "painter", "gardener",
    "knight", "wizard", "witch", "shepherd", "fisherman", "miller", "clown", "boy", "girl", "grandmother", "pilot",
    "programmer", "musician", "postman", "giant", "astronaut", "carpenter", "child", "chef", "ghost", "detective",
)  # fmt: skip

PLACES = (
    "forest", "garden", "village", "desert", "castle", "valley", "harbour", "city", "meadow", "cave", "island", "lake",
    "mountain", "kitchen", "library", "barn", "farm", "school", "river", "market", "tower", "jungle", "swamp", "park",
    "lighthouse", "windmill", "museum", "station", "house", "sea", "tree", "palace", "mine", "bakery", "field", "moon",
)  # fmt: skip

THINGS = (
    "apple", "lamp", "key", "book", "bell", "map", "stone", "coin", "hat", "boat", "drum", "ring", "letter", "basket",
    "mirror", "ladder", "blanket", "candle", "kite", "flower", "nut", "feather", "shell", "cake", "rope", "spoon",
    "button", "clock", "umbrella", "box", "bottle", "chair", "table", "door", "window", "car", "train", "bike", "ball",
)  # fmt: skip

PLAIN = (
    "the", "a", "sun", "is", "red", "blue", "green", "water", "stone", "river", "light", "dark", "soft", "loud", "slow",
    "fast", "seven", "three", "open", "closed", "winter", "summer", "milk", "bread", "cheese", "silver", "gold", "iron",
    "paper", "music", "morning", "evening", "little", "great", "quiet", "happy", "sad", "old", "new", "round", "square",
    "moon", "star", "cloud", "rain", "snow", "wind", "hello", "world", "mlx", "farm", "queue", "worker", "token", "job",
    "I", "you", "we", "like", "love", "see", "eat", "drink", "run", "sing", "dance", "jump", "sleep", "walk", "and",
    "or", "not", "very", "my", "your", "our", "this", "that", "good", "bad", "cold", "hot", "big", "small", "test",
    "banana", "mango", "tulip", "rose", "maple", "pizza", "coffee", "tea", "sugar", "salt", "house", "road", "tree",
)  # fmt: skip

_STARTS = (
    "b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "bl", "br", "cr", "dr",
    "fl", "fr", "gr", "pl", "pr", "sh", "st", "th", "tr",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ee", "oo", "ou")
_CLOSES = ("", "", "n", "r", "s", "l", "m", "t", "k", "x", "nd", "rt")


def invented_word(rng: Random) -> str:
    """Return a word that no list has, so that copying must be learned as copying."""
    syllables = (rng.choice(_STARTS) + rng.choice(_VOWELS) + rng.choice(_CLOSES) for _ in range(rng.randint(1, 3)))
    return "".join(syllables)


def any_word(rng: Random) -> str:
    """Return a known word or an invented one."""
    if rng.random() < 0.3:
        return invented_word(rng)
    return rng.choice(rng.choice((PLAIN, PLAIN, THINGS, ANIMALS, PERSONS, PLACES)))
