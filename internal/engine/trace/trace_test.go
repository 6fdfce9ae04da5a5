package trace

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
)

func id(n byte) uuid.UUID { return uuid.UUID{15: n} }

func message(n, cause byte, state State, at int64) *Message {
	m := &Message{ID: id(n), State: state, At: time.Unix(at, 0)}
	if cause != 0 {
		above := id(cause)
		m.Causation = &above
	}

	return m
}

func render(messages []*Message) string {
	text := ""
	for _, m := range messages {
		text += fmt.Sprintf("%d%s", m.ID[15], string(m.State[:1]))
		if len(m.Caused) > 0 {
			text += "(" + render(m.Caused) + ")"
		}
	}

	return text
}

func TestTreesFollowCauses(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		messages []*Message
		want     string
	}{
		"a chain, out of order":   {[]*Message{message(3, 2, Waiting, 3), message(1, 0, Applied, 1), message(2, 1, Applied, 2)}, "1a(2a(3w))"},
		"two effects":             {[]*Message{message(1, 0, Applied, 1), message(3, 1, Applied, 3), message(2, 1, Applied, 2)}, "1a(2a3a)"},
		"the cause is missing":    {[]*Message{message(2, 9, Applied, 1), message(3, 9, Applied, 2)}, "2a3a"},
		"stopped, then applied":   {[]*Message{message(1, 0, Stopped, 1), message(1, 0, Applied, 2), message(2, 1, Applied, 3)}, "1s1a(2a)"},
		"two consumers, the last": {[]*Message{message(1, 0, Applied, 2), message(1, 0, Applied, 1), message(2, 1, Applied, 3)}, "1a1a(2a)"},
		"its own cause":           {[]*Message{message(1, 1, Applied, 1)}, "1a"},
		"a cycle":                 {[]*Message{message(1, 3, Applied, 1), message(2, 1, Applied, 2), message(3, 2, Applied, 3)}, "3a(1a(2a))"},
		"nothing":                 {nil, ""},
	} {
		if got := render(tree(c.messages)); got != c.want {
			t.Errorf("%s: got %s, expected %s", name, got, c.want)
		}
	}
}

// TestAMessageThatWasReceivedIsNotInTheOutbox: the relay deletes rows a little after it has
// published them.
func TestAMessageThatWasReceivedIsNotInTheOutbox(t *testing.T) {
	t.Parallel()

	applied, late, waiting := message(1, 0, Applied, 1), message(1, 0, Waiting, 0), message(2, 1, Waiting, 2)
	applied.Consumer, late.Topic, waiting.Topic = "c", "t", "t"

	if got := render(tree(received([]*Message{late, applied, waiting}))); got != "1a(2w)" {
		t.Errorf("got %s", got)
	}
}
