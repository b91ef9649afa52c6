# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_greenboost_global_optspecs
    string join \n h/help V/version
end

function __fish_greenboost_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_greenboost_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_greenboost_using_subcommand
    set -l cmd (__fish_greenboost_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c greenboost -n "__fish_greenboost_needs_command" -s h -l help -d 'Print help'
complete -c greenboost -n "__fish_greenboost_needs_command" -s V -l version -d 'Print version'
complete -c greenboost -n "__fish_greenboost_needs_command" -f -a "run" -d 'Run a program with more GPU memory than the card has'
complete -c greenboost -n "__fish_greenboost_needs_command" -f -a "inspect" -d 'Say where a program gets CUDA from, and whether greenboost can serve it'
complete -c greenboost -n "__fish_greenboost_needs_command" -f -a "doctor" -d 'Say whether greenboost can work on this machine, and what would help'
complete -c greenboost -n "__fish_greenboost_needs_command" -f -a "selftest" -d 'Check on this machine that spilled memory stays bit for bit right'
complete -c greenboost -n "__fish_greenboost_needs_command" -f -a "top" -d 'Show the table of running jobs, from another terminal'
complete -c greenboost -n "__fish_greenboost_needs_command" -f -a "limit" -d 'Change the limits of a running job'
complete -c greenboost -n "__fish_greenboost_needs_command" -f -a "park" -d 'Send all that a running job has in VRAM to host RAM, until it uses the GPU again'
complete -c greenboost -n "__fish_greenboost_needs_command" -f -a "ps" -d 'List the running jobs: programs, processes, devices, tiers, age'
complete -c greenboost -n "__fish_greenboost_needs_command" -f -a "probe" -d 'Measure what link, memory and disk can do here, and what spilling will cost'
complete -c greenboost -n "__fish_greenboost_needs_command" -f -a "completions" -d 'Print the completion script of a shell'
complete -c greenboost -n "__fish_greenboost_using_subcommand run" -l vram-limit -d 'VRAM that the job may hold on each device: a size, or a percentage of the card [default: what is free]' -r
complete -c greenboost -n "__fish_greenboost_using_subcommand run" -l ram-limit -d 'Host RAM that the job may pin: a size, or a percentage of RAM [default: 75% of what is available]' -r
complete -c greenboost -n "__fish_greenboost_using_subcommand run" -l spill -d 'Where allocations go when VRAM is full: `ram`, or `off` (out of VRAM is out of memory) [default: ram]' -r
complete -c greenboost -n "__fish_greenboost_using_subcommand run" -l report -d 'Memory that the program is told it has: VRAM and host RAM together, or the VRAM limit alone [default: extended]' -r -f -a "extended\t'VRAM and host RAM together'
physical\t'The VRAM limit alone'"
complete -c greenboost -n "__fish_greenboost_using_subcommand run" -l placement -d 'Who gets VRAM: what is used most, whenever it was allocated, or what comes first, unmoved [default: auto]' -r -f -a "auto\t'By use'
first-fit\t'By order'"
complete -c greenboost -n "__fish_greenboost_using_subcommand run" -l staging -d 'Copy spilled memory into VRAM ahead of its use (experimental) [default: off]' -r -f -a "auto\t'Where it pays'
off\t'Never'"
complete -c greenboost -n "__fish_greenboost_using_subcommand run" -l trace -d 'Write what the program allocates, uses and waits for to a file, to replay placement with' -r -F
complete -c greenboost -n "__fish_greenboost_using_subcommand run" -l json -d 'Write newline-delimited JSON records of the run to a file or an open descriptor' -r -F
complete -c greenboost -n "__fish_greenboost_using_subcommand run" -l stats -d 'What to show on stderr while the program runs: a `table` below its output, `lines`, or only what went wrong [default: auto]' -r -f -a "auto\t'Whatever suits where stderr goes'
table\t'A table below the program\'s output'
lines\t'A line now and then'
off\t'Only what went wrong; no summary'"
complete -c greenboost -n "__fish_greenboost_using_subcommand run" -s v -l verbose -d 'Say what was decided before the launch, and name each process that uses CUDA'
complete -c greenboost -n "__fish_greenboost_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c greenboost -n "__fish_greenboost_using_subcommand inspect" -l json -d 'Print one JSON document'
complete -c greenboost -n "__fish_greenboost_using_subcommand inspect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c greenboost -n "__fish_greenboost_using_subcommand doctor" -l timeout -d 'How long the driver may take to answer' -r
complete -c greenboost -n "__fish_greenboost_using_subcommand doctor" -l json -d 'Print one JSON document'
complete -c greenboost -n "__fish_greenboost_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c greenboost -n "__fish_greenboost_using_subcommand selftest" -l simulated -d 'Use the embedded simulated driver: needs no GPU, and says nothing about one'
complete -c greenboost -n "__fish_greenboost_using_subcommand selftest" -l json -d 'Print one JSON document instead of lines'
complete -c greenboost -n "__fish_greenboost_using_subcommand selftest" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c greenboost -n "__fish_greenboost_using_subcommand top" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c greenboost -n "__fish_greenboost_using_subcommand limit" -l vram -d 'VRAM that it may hold on each device: a size, or a percentage of the card' -r
complete -c greenboost -n "__fish_greenboost_using_subcommand limit" -l ram -d 'Host RAM that it may pin: a size, or a percentage of RAM' -r
complete -c greenboost -n "__fish_greenboost_using_subcommand limit" -l timeout -d 'How long to wait until it keeps to them' -r
complete -c greenboost -n "__fish_greenboost_using_subcommand limit" -l json -d 'Print one JSON document'
complete -c greenboost -n "__fish_greenboost_using_subcommand limit" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c greenboost -n "__fish_greenboost_using_subcommand park" -l timeout -d 'How long to wait until it is parked' -r
complete -c greenboost -n "__fish_greenboost_using_subcommand park" -l json -d 'Print one JSON document'
complete -c greenboost -n "__fish_greenboost_using_subcommand park" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c greenboost -n "__fish_greenboost_using_subcommand ps" -l json -d 'Print one JSON document'
complete -c greenboost -n "__fish_greenboost_using_subcommand ps" -s h -l help -d 'Print help'
complete -c greenboost -n "__fish_greenboost_using_subcommand probe" -l device -d 'The GPU, by its number' -r
complete -c greenboost -n "__fish_greenboost_using_subcommand probe" -l dir -d 'A directory whose disk is measured; may be given several times [default: the current directory]' -r -f -a "(__fish_complete_directories)"
complete -c greenboost -n "__fish_greenboost_using_subcommand probe" -l size -d 'Size of the file that is written there [default: 4 GiB, less where space, RAM or time are short]' -r
complete -c greenboost -n "__fish_greenboost_using_subcommand probe" -l only -d 'Measure only this: the GPU with its link, host RAM, or the disk' -r -f -a "link\t'The GPU'
ram\t'Host RAM'
nvme\t'The disk'"
complete -c greenboost -n "__fish_greenboost_using_subcommand probe" -l model -d 'A model file (GGUF or safetensors) whose speed is predicted' -r -F
complete -c greenboost -n "__fish_greenboost_using_subcommand probe" -l vram-limit -d 'The VRAM limit for that: a size, or a percentage of the card [default: what is free]' -r
complete -c greenboost -n "__fish_greenboost_using_subcommand probe" -l json -d 'Write newline-delimited JSON records to a file or an open descriptor' -r -F
complete -c greenboost -n "__fish_greenboost_using_subcommand probe" -l io -d 'How the disk is used, instead of the best that works' -r -f -a "uring\t'io_uring'
threads\t'A pool of threads that call pread and pwrite'"
complete -c greenboost -n "__fish_greenboost_using_subcommand probe" -l quick -d 'Measure less, in about 10 seconds'
complete -c greenboost -n "__fish_greenboost_using_subcommand probe" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c greenboost -n "__fish_greenboost_using_subcommand completions" -s h -l help -d 'Print help'
