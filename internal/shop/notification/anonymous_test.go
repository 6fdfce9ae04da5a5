package notification

import (
	"strings"
	"testing"
)

func TestAnAnswerDoesNotRepeatTheNotification(t *testing.T) {
	t.Parallel()

	r := EmailDue{Message: Message{UserID: "u1", Content: "Welcome, \"Zoë\"\nLee!"}, address: "zoe@home.example"}

	for answer, want := range map[string]string{
		"250 ok":                                    "250 ok",
		"550 <Zoe@Home.example> unknown":            "550 <(address)> unknown",
		"bad: Welcome, \"Zoë\"\nLee! (400)":         "bad: (content)! (400)",
		`{"content":"Welcome, \"Zoë\"\nLee!"}`:      `{"content":"(content)!"}`,
		`{"b":"{\"c\":\"Welcome, \\\"Zoë\\\"\\nLe`:  `{"b":"{\"c\":\"(content)`,
		`{"c":"Welcome, \"Zo\u00eb\"\nLee!"}`:       `{"c":"(content)!"}`,
		`{"c":"Welcome, \"Zoë\"`:                    `{"c":"(content)\"`,
		"Welcome to nginx":                          "Welcome to nginx",
		"the receiver answered 400 welcome unknown": "the receiver answered 400 welcome unknown",
	} {
		if got := r.anonymous(answer); got != want {
			t.Errorf("%s\n  became %s\n  expected %s", answer, got, want)
		}
	}

	long := Message{Content: strings.Repeat("Zoë ", 5000)}
	if got := long.anonymous("400 " + long.Content[:1000]); strings.Count(got, "Zoë") > 60 {
		t.Errorf("a long content: got %s", got)
	}

	if got := (Message{Content: "!!"}).anonymous("bad !!"); got != "bad !!" {
		t.Errorf("without words: got %s", got)
	}
}
