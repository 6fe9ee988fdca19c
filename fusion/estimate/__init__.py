"""What a run will cost, before it runs: jobs, passes of the network, time, memory and disk. No torch here.

`stages` says of each stage what it reads, computes and writes, as functions of the size of the model, the number of
tasks and the number of examples; `facts` has those sizes from the rows of configuration; `jobs` joins both with a plan;
`rates` turns work into seconds on a machine; `table` shows it.
"""
