"""`python -m omnidecode.train.prompts`: prompts without end, made here, for a target to answer.

Explanations, letters, stories, code, sums, translations, and passages to summarize or to ask about, in equal shares of kind.
Every prompt is put together from the words of this file, a pure function of the seed, and none is anybody else's: text
that a target writes on them can be made again anywhere.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

TOPICS = """bees|volcanoes|the printing press|photosynthesis|glaciers|jazz|the Silk Road|earthquakes|chess|inflation|vaccines|
coral reefs|the moon|bridges|the water cycle|democracy|batteries|tea|coffee|the Renaissance|sailing ships|migratory birds|
wind power|solar panels|black holes|comets|tides|honey|bread|cheese|the violin|the piano|opera|theatre masks|puppets|maps|
compasses|clocks|calendars|the alphabet|paper|ink|libraries|museums|railways|bicycles|electric cars|airplanes|rockets|
satellites|radio|telephones|the internet|search engines|encryption|databases|compilers|recursion|sorting algorithms|binary
numbers|prime numbers|fractions|probability|statistics|geometry|calculus|atoms|molecules|crystals|salt|iron|gold|glass|
concrete|plastic recycling|compost|gardening|potatoes|tomatoes|rice|olive trees|oak trees|mushrooms|mosses|whales|dolphins|
octopuses|sharks|salmon|frogs|snakes|turtles|eagles|owls|penguins|ants|spiders|butterflies|wolves|bears|horses|cats|dogs|
elephants|camels|dinosaurs|fossils|caves|deserts|rainforests|rivers|lakes|islands|mountains|storms|hurricanes|lightning|
rainbows|fog|snow|the seasons|climate|the ozone layer|gravity|magnetism|light|sound|heat|friction|pendulums|levers|engines|
refrigerators|microscopes|telescopes|cameras|films|novels|poetry|fairy tales|myths|proverbs|handwriting|painting|sculpture|
pottery|weaving|fashion|architecture|castles|cathedrals|markets|money|banks|taxes|insurance|trade|factories|unions|schools|
universities|exams|memory|sleep|dreams|exercise|running|swimming|football|tennis|yoga|breathing|the heart|the lungs|blood|
bones|teeth|the eye|the ear|the brain|viruses|bacteria|antibiotics|first aid|hospitals|nutrition|vitamins|sugar|cooking|
soup|ice cream|picnics|festivals|birthdays|weddings|holidays|camping|hiking|travel by train|hotels|passports|languages|
translation|sign language|ancient Egypt|ancient Rome|ancient Greece|the Vikings|the Aztecs|medieval towns|the plague|
the steam engine|the Industrial Revolution|explorers|lighthouses|harbours|fishing|farming|bees in the city|public parks|
traffic|city planning|elections|constitutions|courts|newspapers|advertising|friendship|patience|honesty|teamwork|leadership|
time management|job interviews|remote work|public speaking|negotiation|budgeting|saving water|saving energy"""
ASKS = """What is special about {t}?|Tell me about {t}.|Explain {t} to a ten-year-old.|Why do {t} matter? Answer in one paragraph.|
Give me three interesting facts about {t}.|Write a short story in which {t} play a part.|Write a short poem about {t}.|
List five advantages and five disadvantages of {t}.|Imagine you are an expert on {t}. Give a short talk.|Compare {t} and {u}.|
What do {t} and {u} have in common?|When and where did the history of {t} begin?|How do {t} affect everyday life?|
Give me five tips about {t}.|Write a short blog post about {t}.|Plan a school lesson about {t}, step by step.|
What are common mistakes when people talk about {t}?|Write a dialogue between two friends about {t}.|
Describe {t} so vividly that a reader can picture the scene.|Which questions about {t} are still open?|
Make a quiz of four questions about {t}, with answers.|Summarize the most important things to know about {t}.|
How would you explain the difference between {t} and {u}?|Write a product description for a book about {t}."""
LETTERS = """Write a polite email to {who} about {what}.|Draft a short and friendly message to {who}: {what}.|
Write a formal letter to {who} concerning {what}. Keep it under 120 words.|Rewrite this more politely: "Tell {who} that I want
an answer about {what} now."|Write an announcement for {who} about {what}."""
WHO = """my supervisor|the landlord|a new colleague|the city council|a customer|my professor|the neighbours|the whole team|a
supplier|an old friend|the head of the school|the travel agency"""
WHAT = """the meeting on {day}|a delayed delivery|the broken heating|a day off on {day}|feedback on the quarterly report|the
summer party|a wrong invoice over {n} dollars|moving an appointment to {day}|the loud music at night|a recommendation
letter|the results of the survey|a refund of {n} dollars"""
DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday"
NAMES = "Anna|Ben|Clara|David|Emma|Farid|Grace|Hugo|Ines|Jonas|Kira|Leon|Maya|Noah|Olga|Paul|Rosa|Sam|Tara|Victor"
THINGS = "apples|pencils|stickers|marbles|eggs|books|cookies|oranges|stamps|shells|candles|tickets"
SUMS = """{a} has {x} {things}. {b} gives {a} {y} more, and then {a} loses {z} of them. How many {things} does {a} have now?|
A box holds {y} {things}. {a} buys {z} boxes and shares the {things} equally among {z} friends. How many does each friend get?|
{a} earns ${y} an hour and works {z} hours a day for 5 days. How much does {a} earn in all?|{a} reads {z} pages on the first
day and twice as many every following day. How many pages are read after 3 days?|A train travels {x} miles in {z} hours. At the
same speed, how far does it travel in {y} hours?|{a} and {b} have {x} {things} together. {a} has {z} more than {b}. How many
does {b} have?|A shirt costs ${x}. It is reduced by {y}%. What is the new price?|{a} bakes {x} cookies, eats {z}, and packs the rest
in bags of {z}. How many full bags are there?|{b} is {z} years older than {a}. In {y} years, {a} will be {x}. How old is {b}
now?|A garden is {y} feet long and {z} feet wide. A fence costs $3 a foot. What does a fence around the garden cost?|{a} saves
${z} a week and spends ${x} from the savings after {y} weeks. How much is left, or how much is missing?|A farmer has {x}
hens. Each lays {z} eggs a week. The farmer sells the eggs by the dozen at $4. How much does the farmer earn in {z} weeks?"""
CODE = """checks whether a string is a palindrome|returns the n-th Fibonacci number|finds the largest element of a list|counts the
vowels of a string|reverses the words of a sentence|removes duplicates from a list|checks whether a number is prime|computes
the factorial of a number|merges two sorted lists|finds the second smallest number of a list|sums the digits of a number|
rotates a list by k places|counts how often each word occurs|converts Celsius to Fahrenheit|checks whether two words are
anagrams|flattens a nested list|returns the common elements of two lists|finds the longest word of a sentence|sorts a list of
tuples by the second element|computes the greatest common divisor of two numbers|converts a number to binary|validates an
email address|computes the area of a triangle|multiplies two matrices|finds the missing number from 1 to n|computes the mean
and the median of a list|groups a list of dictionaries by a key|replaces spaces by dashes|searches a sorted list by
halving|computes the power of a number without the operator"""
CODE_ASKS = """Write a Python function that {c}.|Write a function in JavaScript that {c}, and explain each line.|Write a python
function which {c}, with two tests.|How would you write a program that {c}? Describe the steps and give the code.|Write a C++
function that {c}."""
GERMAN = """Der {adjective} {person} {did} am {tag} {place}.|Am {tag} {did} eine {female} {place}, wie die Zeitung
berichtete.|Wegen des {weather} blieb {place} am {tag} fast alles geschlossen.|Nach Angaben der Polizei wurden am {tag}
{place} {n} Menschen verletzt.|"Wir haben lange auf diesen {tag} gewartet", sagte der {person} {place}.|In den vergangenen {n}
Jahren hat sich {place} viel verändert.|Die Regierung will bis {year} mehr als {n} Millionen Euro für neue Schulen ausgeben.|
Der {person} glaubt nicht, dass der Preis für {ware} bald wieder sinkt.|Wer am {tag} {place} war, konnte {ware} sehr günstig
kaufen."""
ADJECTIVES = "junge|alte|bekannte|müde|neue|freundliche"
PERSONS = "Minister|Lehrer|Bürgermeister|Sprecher|Bauer|Trainer|Direktor|Fahrer"
FEMALE = "Ärztin|Sängerin|Forscherin|Richterin|Schülerin|Nachbarin"
DID = (
    "eröffnete ein Geschäft|hielt eine Rede|verlor einen Schlüssel|gewann einen Preis|traf viele Freunde|baute ein Haus"
)
TAGE = "Montag|Dienstag|Mittwoch|Donnerstag|Freitag|Sonntag"
PLACES = "in Berlin|in Hamburg|in einer kleinen Stadt|auf dem Land|in der Schweiz|an der Küste|in den Bergen|in München"
WEATHERS = "Regens|Schnees|Sturms|Streiks|Nebels"
WAREN = "Brot|Benzin|Milch|Strom|Kaffee|Holz"
TOWNS = "Oldtown|Marlow Bay|Kestrel Hill|Northwick|Silver Creek|Port Lorne|Ashford Mills|Dunmere|Eastvale|Wyndham Cross"
KINDS = (
    "lighthouse|library|windmill|harbour|museum|railway station|town hall|observatory|botanical garden|brick factory"
)
FACTS = """The {kind} of {town} was built in {year} by {a} {last}, an engineer who had moved there {n} years earlier.|It is {n}
metres high and was painted white until {late}, when the council decided on red.|In {late} a fire destroyed the roof, and
{n} volunteers worked through the winter to repair it.|About {m} people visit it every year, most of them in summer.|{b} {last},
who runs it today, said on {day} that the money would last for {z} more years.|Residents have asked the council to close the
road beside it, because {n} accidents happened there last year.|A company from {other} offered to buy it for ${n} million, but
the offer was refused.|Local schools send their pupils there on {day}s, and admission is free for children.|The council
will vote on {day} about a plan to add a cafe and {z} parking spaces.|According to the town records, it stood empty
between {late} and the end of that decade.|"We did not expect so many letters," said {a} {last}, who wrote a book about it."""
LAST = "Hartley|Moreno|Okafor|Lindqvist|Tanaka|Whitfield|Novak|Castell|Brandt|Reyes"
PASSAGES = """Summarize: {p}|Summarize this text in two sentences. / {p}|Passage: {p} / Question: Who runs the {kind} of {town}
today, and what is planned there? Answer:|Use the passage to answer the question. / Passage: {p} / Question: When was the
{kind} built, and what happened to it afterwards?|Read the following and list the three most important facts. / {p}|
Context: {p} / Based on the context, how many people visit the {kind} of {town}, and when?"""


def split(words: str) -> list[str]:
    """Choices between bars. Where this file breaks a line is no matter; a slash between spaces is an empty line."""
    return [" ".join(part.split()).replace(" / ", "\n\n") for part in words.split("|")]


class Maker:
    """Draws prompts. The same seed gives the same prompts."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.kinds: list[Callable[[], str]] = [self.about, self.about, self.letter, self.sum, self.code]
        self.kinds += [self.translation, self.passage, self.passage, self.sum, self.about]

    def draw(self, words: str, **filled: object) -> str:
        return self.random.choice(split(words)).format(**filled)

    def number(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def about(self) -> str:
        t, u = self.random.sample(split(TOPICS), 2)
        return self.draw(ASKS, t=t, u=u)

    def letter(self) -> str:
        what = self.draw(WHAT, day=self.draw(DAYS), n=self.number(20, 900))
        return self.draw(LETTERS, who=self.draw(WHO), what=what)

    def sum(self) -> str:
        a, b = self.random.sample(split(NAMES), 2)
        z, y = self.number(2, 9), self.number(10, 30)
        return self.draw(SUMS, a=a, b=b, things=self.draw(THINGS), x=self.number(40, 120), y=y, z=z)

    def code(self) -> str:
        return self.draw(CODE_ASKS, c=self.draw(CODE))

    def translation(self) -> str:
        words = dict(adjective=ADJECTIVES, person=PERSONS, female=FEMALE, did=DID, tag=TAGE, place=PLACES)
        words |= dict(weather=WEATHERS, ware=WAREN)
        drawn = {name: self.draw(choices) for name, choices in words.items()}
        text = self.draw(GERMAN, n=self.number(3, 90), year=self.number(2025, 2040), **drawn)
        return f"Translate German to English: {text}"

    def passage(self) -> str:
        a, b = self.random.sample(split(NAMES), 2)
        town, other = self.random.sample(split(TOWNS), 2)
        kind, year = self.draw(KINDS), self.number(1780, 1920)
        facts = split(FACTS)
        chosen = [facts[0], *(facts[i] for i in sorted(self.random.sample(range(1, len(facts)), self.number(4, 8))))]
        text = " ".join(
            fact.format(
                **dict(a=a, b=b, town=town, other=other, kind=kind, year=year, late=year + self.number(20, 90)),
                **dict(last=self.draw(LAST), day=self.draw(DAYS), n=self.number(11, 60), z=self.number(3, 9)),
                m=self.number(2, 90) * 1000,
            )
            for fact in chosen
        )
        return self.draw(PASSAGES, p=text, kind=kind, town=town)

    def __iter__(self) -> Iterator[str]:
        """Prompts that differ; one kind after another."""
        seen: set[str] = set()
        turn = 0
        while True:
            prompt = self.kinds[turn % len(self.kinds)]()
            turn += 1
            if prompt not in seen:
                seen.add(prompt)
                yield prompt


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m omnidecode.train.prompts", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="JSONL")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    with open(given.out, "w", encoding="utf-8") as file:
        for _, prompt in zip(range(given.count), Maker(given.seed)):
            file.write(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
