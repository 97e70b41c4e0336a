"""Small programs to begin from: `python -m xpcnn.examples.loop`, ... `XPCNN_EXAMPLE_IMAGES=500` makes them short.

    loop            a training loop of one's own, and the same with `xpcnn.compile`
    layer           a layer of one's own, proved by difference quotients
    own_pictures    a folder of pictures: train, save, name new ones
    backend         a backend of one's own, which counts what is computed
    transfer        what a network has learnt on some classes, used for others
    sweep           learning rates side by side, in threads

Notebooks are in the folder `notebooks`.
"""
