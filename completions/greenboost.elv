
use builtin;
use str;

set edit:completion:arg-completer[greenboost] = {|@words|
    fn spaces {|n|
        builtin:repeat $n ' ' | str:join ''
    }
    fn cand {|text desc|
        edit:complex-candidate $text &display=$text' '(spaces (- 14 (wcswidth $text)))$desc
    }
    var command = 'greenboost'
    for word $words[1..-1] {
        if (str:has-prefix $word '-') {
            break
        }
        set command = $command';'$word
    }
    var completions = [
        &'greenboost'= {
            cand -h 'Print help'
            cand --help 'Print help'
            cand -V 'Print version'
            cand --version 'Print version'
            cand run 'Run a program with more GPU memory than the card has'
            cand inspect 'Say where a program gets CUDA from, and whether greenboost can serve it'
            cand doctor 'Say whether greenboost can work on this machine, and what would help'
            cand selftest 'Check on this machine that spilled memory stays bit for bit right'
            cand top 'Show the table of running jobs, from another terminal'
            cand limit 'Change the limits of a running job'
            cand park 'Send all that a running job has in VRAM to host RAM, until it uses the GPU again'
            cand ps 'List the running jobs: programs, processes, devices, tiers, age'
            cand probe 'Measure what link, memory and disk can do here, and what spilling will cost'
            cand completions 'Print the completion script of a shell'
        }
        &'greenboost;run'= {
            cand --vram-limit 'VRAM that the job may hold on each device: a size, or a percentage of the card [default: what is free]'
            cand --ram-limit 'Host RAM that the job may pin: a size, or a percentage of RAM [default: 75% of what is available]'
            cand --spill 'Where allocations go when VRAM is full: `ram`, or `off` (out of VRAM is out of memory) [default: ram]'
            cand --report 'Memory that the program is told it has: VRAM and host RAM together, or the VRAM limit alone [default: extended]'
            cand --placement 'Who gets VRAM: what is used most, whenever it was allocated, or what comes first, unmoved [default: auto]'
            cand --staging 'Copy spilled memory into VRAM ahead of its use (experimental) [default: off]'
            cand --trace 'Write what the program allocates, uses and waits for to a file, to replay placement with'
            cand --json 'Write newline-delimited JSON records of the run to a file or an open descriptor'
            cand --stats 'What to show on stderr while the program runs: a `table` below its output, `lines`, or only what went wrong [default: auto]'
            cand -v 'Say what was decided before the launch, and name each process that uses CUDA'
            cand --verbose 'Say what was decided before the launch, and name each process that uses CUDA'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'greenboost;inspect'= {
            cand --json 'Print one JSON document'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'greenboost;doctor'= {
            cand --timeout 'How long the driver may take to answer'
            cand --json 'Print one JSON document'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'greenboost;selftest'= {
            cand --simulated 'Use the embedded simulated driver: needs no GPU, and says nothing about one'
            cand --json 'Print one JSON document instead of lines'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'greenboost;top'= {
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'greenboost;limit'= {
            cand --vram 'VRAM that it may hold on each device: a size, or a percentage of the card'
            cand --ram 'Host RAM that it may pin: a size, or a percentage of RAM'
            cand --timeout 'How long to wait until it keeps to them'
            cand --json 'Print one JSON document'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'greenboost;park'= {
            cand --timeout 'How long to wait until it is parked'
            cand --json 'Print one JSON document'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'greenboost;ps'= {
            cand --json 'Print one JSON document'
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'greenboost;probe'= {
            cand --device 'The GPU, by its number'
            cand --dir 'A directory whose disk is measured; may be given several times [default: the current directory]'
            cand --size 'Size of the file that is written there [default: 4 GiB, less where space, RAM or time are short]'
            cand --only 'Measure only this: the GPU with its link, host RAM, or the disk'
            cand --model 'A model file (GGUF or safetensors) whose speed is predicted'
            cand --vram-limit 'The VRAM limit for that: a size, or a percentage of the card [default: what is free]'
            cand --json 'Write newline-delimited JSON records to a file or an open descriptor'
            cand --io 'How the disk is used, instead of the best that works'
            cand --quick 'Measure less, in about 10 seconds'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'greenboost;completions'= {
            cand -h 'Print help'
            cand --help 'Print help'
        }
    ]
    $completions[$command]
}
