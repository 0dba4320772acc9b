"""Lists of English words for the rules."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Can be followed only by a noun and what describes it.
DETERMINERS = _words("the a an my your his her its our their every each another no")
SUBJECTS = _words("i we they he she")
MODALS = _words("can could will would shall should may might must cannot")
DEGREES = _words("very too so quite rather extremely")
# Closed word classes and auxiliary verbs.
CLOSED = DETERMINERS | SUBJECTS | MODALS | DEGREES | _words(
    """
    this that these those some any all both either neither few many much more most less least other
    such same own me you it him them us mine yours hers ours theirs myself yourself himself herself
    itself ourselves themselves who whom whose which what where when why how there here
    be am is are was were been being have has had having do does did doing done
    and or but nor yet if because although though while since unless until whereas as than whether
    of in on at by for with about against between into through during before after above below to
    from up down out off over under again then once not only just also even still ever never always
    s t ll re ve d m like well ought let get got one ones
    """
)  # fmt: skip
# Are followed by a description.
COPULAS = _words("am is are was were be been being very so too quite rather extremely")
# Change the meaning of the verb before them.
PARTICLES = _words("up down out off over away in on back through along around about")

SUBORDINATORS = (
    "because", "although", "though", "while", "when", "whenever", "if", "unless", "until", "after",
    "before",
)  # fmt: skip
# Other words that may attach a clause to another.
LINKS = (*SUBORDINATORS, "since", "as", "that", "which", "who", "than", "so", "once")
# Words that begin a question, which cannot be moved like a statement.
QUESTIONS = _words("who what where when why how do does did is are was were")
# Words that may begin a sentence and are never capitalised elsewhere.
SMALL = (DETERMINERS | SUBJECTS | _words("this these it you there")) - {"i"}

SUBJECT_OF = {"him": "he", "her": "she", "them": "they", "us": "we", "me": "I"}
OBJECT_OF = {"he": "him", "she": "her", "they": "them", "we": "us", "i": "me", "it": "it"}
OBJECTS = _words("it you him her them us me this that these those")
# Verbs whose passive names the agent with "by".
AGENTIVE = _words(
    """
    write direct produce make create design publish develop record film shoot edit invent discover
    paint compose build love hate like recommend read watch see use ruin describe choose play test
    approve reject review accept propose buy sell send
    """
)
# Names after "by" that are times.
TIMES = _words(
    """
    monday tuesday wednesday thursday friday saturday sunday january february march april may june
    july august september october november december christmas easter
    """
)
