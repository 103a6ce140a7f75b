"""Changes of many LoRAs on one network: attached, selected row by row, evaluated as one batch or one after another.

    bank        the factors of all LoRAs, and their attachment to a network
    site        one module of it while a variant is in use: its forward and its parameters
    module_changes  what all variants change of one module, by the way it takes
    shared_inputs  layers that get one input tensor: their products;  siblings  their outputs
    low_rank    additions of plain LoRAs to a module's output; add: the products
    changed     every other kind of change, one layer's difference built at a time
    deferred    a changed parameter that is computed when something computes with it
    selection   which row of a call is which variant
    execution   passes of several variants
"""
