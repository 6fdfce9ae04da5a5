package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// summary describes many runs as tables, by broker.
func summary(reports []Report, s settings) string {
	var b strings.Builder

	brokers := map[string][]Report{}
	kinds := map[string]bool{}

	for _, r := range reports {
		brokers[r.Broker] = append(brokers[r.Broker], r)

		for kind := range r.Faults {
			kinds[kind] = true
		}
	}

	names := slices.Sorted(maps.Keys(brokers))
	row := func(title string, value func([]Report) string) {
		fmt.Fprintf(&b, "| %s |", title)

		for _, name := range names {
			fmt.Fprintf(&b, " %s |", value(brokers[name]))
		}

		b.WriteString("\n")
	}
	sum := func(of func(Report) int) func([]Report) string {
		return func(list []Report) string {
			n := 0
			for _, r := range list {
				n += of(r)
			}

			return fmt.Sprint(n)
		}
	}

	fmt.Fprintf(&b, "<!-- Written by proof chaos -summary. -->\n\n| | %s |\n|---|%s\n", strings.Join(names, " | "), strings.Repeat("---:|", len(names)))
	row(fmt.Sprintf("runs of %s of faults, %d replicas", s.duration, s.replicas), func(list []Report) string { return fmt.Sprint(len(list)) })
	row("**violations**", sum(func(r Report) int { return len(r.Violations) }))
	row("runs that could not be completed", sum(func(r Report) int { return min(1, len(r.Error)) }))
	row("messages", sum(func(r Report) int { return total(r.Messages) }))
	row("faults", sum(func(r Report) int { return total(r.Faults) }))
	row("replicas started", sum(func(r Report) int { return r.Counts["replicas started"] }))
	row("longest time until rest", func(list []Report) string {
		longest := 0.0
		for _, r := range list {
			longest = max(longest, r.Rest)
		}

		return fmt.Sprintf("%.0f s", longest)
	})

	fmt.Fprintf(&b, "\n| fault | %s |\n|---|%s\n", strings.Join(names, " | "), strings.Repeat("---:|", len(names)))

	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		row(kind, sum(func(r Report) int { return r.Faults[kind] }))
	}

	return b.String()
}
