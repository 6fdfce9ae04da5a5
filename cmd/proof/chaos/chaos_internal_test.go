package chaos

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millracehq/millrace/cmd/proof/checker"
	"github.com/millracehq/millrace/cmd/proof/server"
)

func names(seed uint64, broker string) (list []string) {
	for _, f := range schedule(seed, broker, time.Minute) {
		list = append(list, f.String())
	}

	return list
}

func TestASeedDecidesTheFaults(t *testing.T) {
	t.Parallel()

	for _, broker := range []string{server.Embedded, server.Kafka, server.RabbitMQ} {
		if !slices.Equal(names(1, broker), names(1, broker)) || slices.Equal(names(1, broker), names(2, broker)) {
			t.Errorf("%s: the seed does not decide the faults", broker)
		}
	}
}

func TestThirtySeedsHaveEveryKindOfFault(t *testing.T) {
	t.Parallel()

	for _, broker := range []string{server.Embedded, server.Kafka, server.RabbitMQ} {
		var all []string
		for seed := range uint64(30) {
			all = append(all, names(seed+1, broker)...)
		}

		text := strings.Join(all, "\n")

		for _, k := range kinds(broker) {
			if !strings.Contains(text, k.name) {
				t.Errorf("%s: no %s", broker, k.name)
			}
		}
	}
}

func TestAFaultLastsAtMostAThirdOfTheRun(t *testing.T) {
	t.Parallel()

	for _, f := range schedule(1, server.Kafka, 15*time.Second) {
		if f.hold > 5*time.Second || f.at >= 15*time.Second {
			t.Errorf("%s lasts %s", f, f.hold)
		}
	}
}

func TestTheSummaryCountsByBrokerAndFault(t *testing.T) {
	t.Parallel()

	text := summary([]Report{
		{Broker: "kafka", Messages: map[string]int{"a": 2, "b": 3}, Faults: map[string]int{"kill": 1}, Rest: 4},
		{Broker: "kafka", Messages: map[string]int{"a": 1}, Faults: map[string]int{"kill": 2}, Rest: 9, Violations: []checker.Violation{{}}},
		{Broker: "embedded", Error: "it did not start"},
	}, settings{options: options{duration: time.Minute, replicas: 3}})

	for _, line := range []string{
		"| | embedded | kafka |", "| runs of 1m0s of faults, 3 replicas | 1 | 2 |", "| **violations** | 0 | 1 |", "| runs that could not be completed | 1 | 0 |",
		"| messages | 0 | 6 |", "| kill | 0 | 3 |", "| longest time until rest | 0 s | 9 s |",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("the summary lacks %s:\n%s", line, text)
		}
	}
}

func TestASeedRangeIsChecked(t *testing.T) {
	t.Parallel()

	if first, last, err := parseSeeds(settings{seeds: "3-7"}); first != 3 || last != 7 || err != nil {
		t.Errorf("%d to %d: %v", first, last, err)
	}

	for _, wrong := range []string{"7-3", "a", "1-", "-"} {
		if _, _, err := parseSeeds(settings{seeds: wrong}); err == nil || !strings.Contains(err.Error(), "expected a range such as 1-30") {
			t.Errorf("%s: %v", wrong, err)
		}
	}
}
