package telemetry_test

import (
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
