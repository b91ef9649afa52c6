
using namespace System.Management.Automation
using namespace System.Management.Automation.Language

Register-ArgumentCompleter -Native -CommandName 'greenboost' -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    $commandElements = $commandAst.CommandElements
    $command = @(
        'greenboost'
        for ($i = 1; $i -lt $commandElements.Count; $i++) {
            $element = $commandElements[$i]
            if ($element -isnot [StringConstantExpressionAst] -or
                $element.StringConstantType -ne [StringConstantType]::BareWord -or
                $element.Value.StartsWith('-') -or
                $element.Value -eq $wordToComplete) {
                break
        }
        $element.Value
    }) -join ';'

    $completions = @(switch ($command) {
        'greenboost' {
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('-V', '-V ', [CompletionResultType]::ParameterName, 'Print version')
            [CompletionResult]::new('--version', '--version', [CompletionResultType]::ParameterName, 'Print version')
            [CompletionResult]::new('run', 'run', [CompletionResultType]::ParameterValue, 'Run a program with more GPU memory than the card has')
            [CompletionResult]::new('inspect', 'inspect', [CompletionResultType]::ParameterValue, 'Say where a program gets CUDA from, and whether greenboost can serve it')
            [CompletionResult]::new('doctor', 'doctor', [CompletionResultType]::ParameterValue, 'Say whether greenboost can work on this machine, and what would help')
            [CompletionResult]::new('selftest', 'selftest', [CompletionResultType]::ParameterValue, 'Check on this machine that spilled memory stays bit for bit right')
            [CompletionResult]::new('top', 'top', [CompletionResultType]::ParameterValue, 'Show the table of running jobs, from another terminal')
            [CompletionResult]::new('limit', 'limit', [CompletionResultType]::ParameterValue, 'Change the limits of a running job')
            [CompletionResult]::new('park', 'park', [CompletionResultType]::ParameterValue, 'Send all that a running job has in VRAM to host RAM, until it uses the GPU again')
            [CompletionResult]::new('ps', 'ps', [CompletionResultType]::ParameterValue, 'List the running jobs: programs, processes, devices, tiers, age')
            [CompletionResult]::new('probe', 'probe', [CompletionResultType]::ParameterValue, 'Measure what link, memory and disk can do here, and what spilling will cost')
            [CompletionResult]::new('completions', 'completions', [CompletionResultType]::ParameterValue, 'Print the completion script of a shell')
            break
        }
        'greenboost;run' {
            [CompletionResult]::new('--vram-limit', '--vram-limit', [CompletionResultType]::ParameterName, 'VRAM that the job may hold on each device: a size, or a percentage of the card [default: what is free]')
            [CompletionResult]::new('--ram-limit', '--ram-limit', [CompletionResultType]::ParameterName, 'Host RAM that the job may pin: a size, or a percentage of RAM [default: 75% of what is available]')
            [CompletionResult]::new('--spill', '--spill', [CompletionResultType]::ParameterName, 'Where allocations go when VRAM is full: `ram`, or `off` (out of VRAM is out of memory) [default: ram]')
            [CompletionResult]::new('--report', '--report', [CompletionResultType]::ParameterName, 'Memory that the program is told it has: VRAM and host RAM together, or the VRAM limit alone [default: extended]')
            [CompletionResult]::new('--placement', '--placement', [CompletionResultType]::ParameterName, 'Who gets VRAM: what is used most, whenever it was allocated, or what comes first, unmoved [default: auto]')
            [CompletionResult]::new('--staging', '--staging', [CompletionResultType]::ParameterName, 'Copy spilled memory into VRAM ahead of its use (experimental) [default: off]')
            [CompletionResult]::new('--trace', '--trace', [CompletionResultType]::ParameterName, 'Write what the program allocates, uses and waits for to a file, to replay placement with')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'Write newline-delimited JSON records of the run to a file or an open descriptor')
            [CompletionResult]::new('--stats', '--stats', [CompletionResultType]::ParameterName, 'What to show on stderr while the program runs: a `table` below its output, `lines`, or only what went wrong [default: auto]')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say what was decided before the launch, and name each process that uses CUDA')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say what was decided before the launch, and name each process that uses CUDA')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'greenboost;inspect' {
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'Print one JSON document')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'greenboost;doctor' {
            [CompletionResult]::new('--timeout', '--timeout', [CompletionResultType]::ParameterName, 'How long the driver may take to answer')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'Print one JSON document')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'greenboost;selftest' {
            [CompletionResult]::new('--simulated', '--simulated', [CompletionResultType]::ParameterName, 'Use the embedded simulated driver: needs no GPU, and says nothing about one')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'Print one JSON document instead of lines')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'greenboost;top' {
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'greenboost;limit' {
            [CompletionResult]::new('--vram', '--vram', [CompletionResultType]::ParameterName, 'VRAM that it may hold on each device: a size, or a percentage of the card')
            [CompletionResult]::new('--ram', '--ram', [CompletionResultType]::ParameterName, 'Host RAM that it may pin: a size, or a percentage of RAM')
            [CompletionResult]::new('--timeout', '--timeout', [CompletionResultType]::ParameterName, 'How long to wait until it keeps to them')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'Print one JSON document')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'greenboost;park' {
            [CompletionResult]::new('--timeout', '--timeout', [CompletionResultType]::ParameterName, 'How long to wait until it is parked')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'Print one JSON document')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'greenboost;ps' {
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'Print one JSON document')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            break
        }
        'greenboost;probe' {
            [CompletionResult]::new('--device', '--device', [CompletionResultType]::ParameterName, 'The GPU, by its number')
            [CompletionResult]::new('--dir', '--dir', [CompletionResultType]::ParameterName, 'A directory whose disk is measured; may be given several times [default: the current directory]')
            [CompletionResult]::new('--size', '--size', [CompletionResultType]::ParameterName, 'Size of the file that is written there [default: 4 GiB, less where space, RAM or time are short]')
            [CompletionResult]::new('--only', '--only', [CompletionResultType]::ParameterName, 'Measure only this: the GPU with its link, host RAM, or the disk')
            [CompletionResult]::new('--model', '--model', [CompletionResultType]::ParameterName, 'A model file (GGUF or safetensors) whose speed is predicted')
            [CompletionResult]::new('--vram-limit', '--vram-limit', [CompletionResultType]::ParameterName, 'The VRAM limit for that: a size, or a percentage of the card [default: what is free]')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'Write newline-delimited JSON records to a file or an open descriptor')
            [CompletionResult]::new('--io', '--io', [CompletionResultType]::ParameterName, 'How the disk is used, instead of the best that works')
            [CompletionResult]::new('--quick', '--quick', [CompletionResultType]::ParameterName, 'Measure less, in about 10 seconds')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'greenboost;completions' {
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            break
        }
    })

    $completions.Where{ $_.CompletionText -like "$wordToComplete*" } |
        Sort-Object -Property ListItemText
}
