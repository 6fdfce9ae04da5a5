package telemetry_test

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/telemetry"
)

// wordy is an error with a stack trace, like those of github.com/pkg/errors.
type wordy struct{}

func (wordy) Error() string { return "no connection" }

func (wordy) Format(s fmt.State, verb rune) {
	if verb == 'v' && s.Flag('+') {
		_, _ = fmt.Fprint(s, "no connection\nmain.main\n\t/src/main.go:7")

		return
	}

	_, _ = fmt.Fprint(s, "no connection")
}

func TestErrorsAreLoggedWithoutTheirStack(t *testing.T) {
	t.Parallel()

	for format, want := range map[string]string{"text": `error="no connection"`, "json": `"error":"no connection"`} {
		var out strings.Builder

		telemetry.NewLogger(telemetry.Config{Level: "info", Format: format}, &out).
			Info("trouble", slog.Any("error", wordy{}), slog.Int("n", 7), slog.Any("nothing", nil))

		if got := out.String(); !strings.Contains(got, want) || strings.Contains(got, "main.go") {
			t.Errorf("%s: got %s", format, got)
		}
	}
}

type stringer struct{ text string }

func (s stringer) String() string { return s.text }

func TestSecretsInValuesOfAnyTypeAreHidden(t *testing.T) {
	t.Parallel()

	const address = "https://user:hunter2@h.example"

	for name, value := range map[string]any{
		"a text":      address,
		"a list":      []string{"x", address},
		"a stringer":  stringer{address},
		"a map":       map[string]string{"url": address},
		"an error":    errors.New(address),
		"a structure": struct{ URL string }{address},
	} {
		for _, format := range []string{"text", "json"} {
			var out strings.Builder

			telemetry.NewLogger(telemetry.Config{Level: "info", Format: format}, &out).Info("x", slog.Any("value", value), slog.Any("list", []string{"plain"}))

			if got := out.String(); strings.Contains(got, "hunter2") || !strings.Contains(got, "plain") {
				t.Errorf("%s as %s: got %s", name, format, got)
			}
		}
	}
}
