"""The words that are one piece of the embedded vocabulary, and its rare pieces.

The words come from the toybox captions, from common prompts and from everyday English.
identifier.py uses the list to recognise common words.
"""

import itertools

FUNCTION = """
a an the this that these those and or but nor so if then than as at by for from in into
inside of off on onto out over under underneath to toward towards up down upon with
without within near beside besides between behind before after above below across along
among against around about through during until while since because beyond past per via
not no yes is are was were be been being am has have had having do does did doing done
can could will would shall should may might must it its he him his she her hers they
them their theirs we us our ours you your yours i me my mine who whom whose which what
when where why how there here all any both each either every few many more most much
neither none one other others another some such same own only very too just also again
ever never always often now soon still yet almost like unlike together apart away back
forth top bottom front side sides left right middle center centre edge corner end
"""

NUMBER = """
zero two three four five six seven eight nine ten eleven twelve hundred thousand first
second third last next half quarter pair single double several
"""

SUBJECT = """
dog dogs puppy cat cats kitten rabbit bunny duck duckling bird owl parrot penguin
chicken hen rooster goose swan eagle fox wolf bear panda lion tiger leopard monkey
elephant giraffe zebra horse pony donkey cow bull sheep lamb goat pig mouse rat hamster
squirrel hedgehog raccoon otter beaver deer moose camel kangaroo koala sloth bat frog
toad turtle tortoise snake lizard dragon dinosaur unicorn crocodile fish goldfish shark
whale dolphin octopus crab lobster snail bee butterfly ladybug spider ant animal animals
pet creature monster backpack bag handbag suitcase basket box crate barrel bucket bottle
bowl cup mug glass jug jar tin kettle teapot pot pan plate saucer spoon fork knife vase
candle lamp lantern clock watch mirror comb brush broom umbrella key lock bell book
books pen pencil crayon paper card envelope letter map globe camera phone telephone
radio television computer keyboard laptop screen printer robot robots toy toys doll
plush plushie teddy balloon ball balls kite drum guitar violin piano trumpet flute car
cars truck van bus taxi tractor train tram bicycle bike motorcycle scooter skateboard
boat boats ship canoe sailboat submarine plane airplane helicopter rocket spaceship
satellite sneaker sneakers shoe shoes boot boots sandal slipper slippers sock socks
chair stool sofa couch bench table desk bed pillow blanket cushion shelf drawer cabinet
wardrobe door window gate ladder hammer saw wrench screwdriver nail rope chain wheel
gear anchor flag sword shield helmet mask statue sculpture figure figurine fountain
mailbox bin pumpkin apple pear orange lemon banana cherry strawberry grapes melon
pineapple peach carrot potato tomato onion pepper mushroom corn bread cake cookie pie
pizza burger sandwich cheese egg eggs milk tea coffee juice water soup ice cream
chocolate candy berry berries honey butter sugar salt cactus plant plants flower flowers
rose tulip sunflower sunflowers daisy tree trees bush leaf leaves grass branch stuffed
subject thing things object objects item person people man men woman women boy girl
child children baby king queen prince princess knight wizard witch pirate chef doctor
nurse police policeman firefighter astronaut cowboy farmer sailor soldier artist clown
santa angel ghost superhero detective
"""

PLACE = """
beach sea ocean lake river pond stream waterfall island coast shore harbor harbour port
wave waves sand dune desert jungle forest wood woods meadow field fields hill hills
mountain mountains valley canyon cliff cave rock rocks stone stones volcano glacier snow
iceberg garden park farm orchard vineyard yard lawn path trail road roads street streets
alley sidewalk pavement bridge tunnel square plaza market shop store mall cafe
restaurant kitchen room bedroom bathroom office library museum gallery studio stage
theater theatre cinema school hospital church temple castle palace tower house houses
home hut cottage cabin barn tent igloo building buildings skyscraper city cities town
village stadium pool playground station airport railway garage factory workshop floor
wall walls ceiling roof stairs carpet rug mat curtain tablecloth fabric cloth wheat hay
autumn background foreground landscape scene sky skies cloud clouds sun moon star stars
planet earth mars space galaxy universe world rainbow horizon ground dirt mud puddle
soil gravel cobblestone brick concrete asphalt tile tiles
"""

QUALITY = """
red green blue yellow purple violet pink brown black white grey gray silver gold golden
bronze copper cyan teal turquoise magenta maroon navy beige ivory crimson scarlet olive
lime lavender indigo tan colour color coloured colored colourful colorful bright dark
light pale vivid pastel deep plain striped stripes dotted dots spotted spots checkered
patterned pattern shiny glossy matte rough smooth soft hard fluffy furry fuzzy hairy
feathery woolly wooden metal metallic steel iron plastic rubber leather crystal diamond
marble ceramic porcelain clay cotton wool silk velvet denim lace straw cardboard knitted
woven crocheted stitched carved polished rusty dusty dirty clean wet dry frozen icy
snowy sandy muddy mossy grassy rocky broken cracked old new young ancient antique
vintage modern futuristic retro big small large little tiny huge giant tall short long
wide narrow thick thin fat round cube cubic cubed spherical sphere cone cylinder pyramid
triangle triangular rectangular circle circular oval flat curved shaped shape heart
heavy empty full open closed transparent translucent opaque glowing sparkling shimmering
burning hot cold warm cool fresh rotten sweet beautiful pretty cute lovely ugly strange
weird funny silly scary spooky happy smiling sad crying angry grumpy scared surprised
sleepy sleeping tired bored excited calm proud shy curious brave friendly evil magical
magic mysterious elegant fancy simple detailed realistic abstract real fake crowded
quiet loud busy lonely fast slow strong weak rich poor royal wild tame good bad nice
great best better worse perfect special unique ordinary typical common rare famous
favourite favorite whole different similar
"""

WEARING = """
wearing wears wear dressed hat cap crown tiara beanie hood scarf tie bow bowtie ribbon
collar necklace bracelet ring earrings glasses sunglasses goggles monocle eyepatch coat
jacket sweater hoodie shirt tshirt vest dress skirt pants trousers jeans shorts suit
tuxedo uniform outfit costume cape cloak robe apron gloves mittens belt wings horns tail
ears eyes nose mouth teeth face head hair fur beard moustache whiskers paw paws leg legs
arm arms hand hands foot feet wing beak feathers shell body holding carrying riding
driving flying swimming floating running walking jumping sitting standing lying resting
playing eating drinking reading writing singing dancing looking watching facing hiding
climbing falling rolling sliding skating surfing skiing cooking working painting
"""

PICTURE = """
photo photos photograph photography picture image pictures images portrait closeup close
view views seen angle overhead aerial perspective paintings painted paint oil watercolor
watercolour acrylic sketch sketches drawing drawn ink charcoal chalk line lines art
artwork artistic cartoon comic anime illustration poster print engraving mosaic stained
collage origami embroidery graffiti mural pixel pixelated render rendering style styled
impressionist cubist surreal minimalist sculptor painter depiction rendition cropped
blurry sharp focus bokeh zoomed macro grainy sunset sunrise dawn dusk day night noon
morning evening afternoon midnight daylight sunlight sunny moonlight moonlit candlelight
shadow shadows backlit lit lighting lights neon fire flames smoke fog foggy mist misty
rain rainy raining snowing snowfall storm stormy thunder lightning wind windy cloudy
spring summer winter season weather christmas halloween birthday party wedding festival
holiday
"""

ORDINARY = """
time year week month hour minute today life way work part place point number group
family mother father friend friends teacher student team game games story idea name word
words language music song movie history science nature power money food breakfast lunch
dinner fruit vegetable meat rice land country make makes made take taken give get got go
goes going come comes coming see find know think want need use used using hang hanging
keep let begin start stop show hear play move live bring stay stands sits covered filled
surrounded decorated topped reflected reflection hidden tied wrapped parked growing
blooming melting placed far high low main public free true clear noise smell dream
memory blood bone skin project model size type kind form level order list page sign
piece pieces set collection design fashion sport football tennis golf race prize travel
trip hotel ticket engine machine tool tools gift present luck joy laughing hug adventure
hero legend fairy tale elf goblin zombie mermaid alien european french japanese chinese
egyptian greek roman paris london york eiffel floppy pointed curled eye windows dunes
planks texture quality highly extremely cinematic professional resolution class tap ski
rod pat tub ref mic pic flu gap bid row dad mom gal gel jam pit lab pal hub tag gym gem
bug lay jaw dig rub god odd jet pad bro pod sac mad fit fix mix log zip hop hum nap net
oak sin sip tip dot dip cub cod den dam ax bay bar ban bet due fan fig fin gas gum hip
hit ill ivy jog kid lid lip lot mob mop mow nod nun owe pea peg pin ray rib rim rip rot
sew spa spy tow wax web wig wit yak
"""

# Consonant, vowel, consonant triples that English words or names begin with.
NOT_RARE = """
jak jav jaw jax jaz jef jek jew jez jif jiv jiz jok jov jow juj juk juv jux kaf kaj kak
kav kaz kek kev kex kik kiv kiw kix koj kok koq kuk kuv kuw vaq vav vax vaz vex vez vik
viv vix viz vow vox vuk waf wak wav waw wax wek wex wez wif wik wiv wix wiz wok wow wuf
xav xex xiv xix xox zak zax zef zek zik zuf zuk zuv zuz
"""


def words() -> list[str]:
    """The listed words."""
    lists = (FUNCTION, NUMBER, SUBJECT, PLACE, QUALITY, WEARING, PICTURE, ORDINARY)
    return [word for text in lists for word in text.split()]


def rare() -> list[str]:
    """The rare pieces."""
    every = map("".join, itertools.product("jkqvwxz", "aeiou", "fjkqvwxz"))
    return [piece for piece in every if piece not in NOT_RARE.split()]
