package brokertest

import (
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/go-cmp/cmp"

	"github.com/millracehq/millrace/internal/engine/event"
)

var update = flag.Bool("update", false, "write the golden files")

// Outgoing returns the message whose wire format the golden files hold.
func Outgoing() *message.Message {
	msg := message.NewMessage("01890a5d-ac96-774b-bcce-b302099a8057", []byte(`{"order_id":"order_123"}`))
	msg.Metadata = message.Metadata{
		event.HeaderKey: "order_123", event.HeaderOrigin: "never sent", event.HeaderID: msg.UUID, event.HeaderSource: event.Source,
		event.HeaderType: "orders.completed", event.HeaderSpecVersion: "1.0", event.HeaderTime: "2026-01-02T03:04:05Z",
		event.HeaderContentType: "application/json", event.HeaderCorrelation: msg.UUID,
	}

	return msg
}

// Wire is a message as a broker stores it.
type Wire struct {
	Key        string            `json:"key,omitempty"`
	Properties map[string]string `json:"properties,omitempty"`
	Headers    map[string]string `json:"headers"`
	Body       json.RawMessage   `json:"body"`
}

// Golden compares a message with testdata/wire.golden. With -update it writes
// the file.
func Golden(tb testing.TB, w Wire) {
	tb.Helper()

	const path = "testdata/wire.golden"

	got, err := json.MarshalIndent(w, "", "  ")
	if err != nil {
		tb.Fatal(err)
	}

	if *update {
		if err := os.WriteFile(path, append(got, '\n'), 0o600); err != nil {
			tb.Fatal(err)
		}
	}

	want, err := os.ReadFile(path)
	if err != nil {
		tb.Fatalf("%v: run the test with -update", err)
	}

	if diff := cmp.Diff(strings.TrimSpace(string(want)), string(got)); diff != "" {
		tb.Error(diff)
	}
}
