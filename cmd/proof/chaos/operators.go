package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/millracehq/millrace/cmd/proof/record"
)

// request calls the operator API of any replica that answers.
func (w *world) request(ctx context.Context, method, path string, body any) ([]byte, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}

	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()

	err = fmt.Errorf("no replica is running")

	for _, s := range w.slots {
		if !s.mu.TryLock() {
			continue // it is being killed or frozen
		}

		var address string
		if r, startErr := s.alive(); startErr == nil {
			address = r.API
		}

		s.mu.Unlock()

		var answer []byte
		if answer, err = call(ctx, method, "http://"+address+"/api/v1"+path, data); err == nil {
			return answer, nil
		}
	}

	return nil, err
}

func call(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}

	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("X-Millrace-Operator", "proof")

	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}

	defer func() { _ = response.Body.Close() }()

	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode >= http.StatusMultipleChoices {
		err = fmt.Errorf("%s %s: %s: %s", method, url, response.Status, bytes.TrimSpace(answer))
	}

	return answer, err
}

type why struct {
	Why string `json:"why"`
	For string `json:"for,omitempty"`
}

func pauseConsumer(ctx context.Context, w *world, f fault) error {
	list := consumersToPause()
	consumer := list[f.roll%len(list)]

	if _, err := w.request(ctx, http.MethodPost, "/consumers/"+consumer+"/pause", why{Why: "proof"}); err != nil {
		return err
	}

	pause(ctx, f.hold)

	// If this fails, it is resumed once all is quiet.
	_, err := w.request(ctx, http.MethodPost, "/consumers/"+consumer+"/resume", why{Why: "proof"})

	return err
}

func retryWaiting(ctx context.Context, w *world, _ fault) error {
	_, err := w.request(ctx, http.MethodPost, "/waiting/retry", map[string]any{"all": true, "why": "proof"})

	return err
}

// toEdit returns the messages that an operator repairs: every second one of those with an
// impossible quantity.
func toEdit(rec *record.Record) (list []*record.Message) {
	n := 0

	for _, m := range rec.Messages {
		if m.Fate == record.Stopped && !m.Copy && m.Topic == "orders.created" && strings.Contains(string(m.Payload), `"quantity":-1`) {
			if n++; n%2 == 0 {
				list = append(list, m)
			}
		}
	}

	return list
}

func editedPayload(m *record.Message) []byte {
	return bytes.Replace(m.Payload, []byte(`"quantity":-1`), []byte(`"quantity":1`), 1)
}

// repair edits a stopped message and requeues it, as soon as it is there, whatever fails
// meanwhile.
func (r *run) repair(ctx context.Context, m *record.Message) error {
	edited := editedPayload(m)

	for ctx.Err() == nil {
		var (
			id    int64
			state string
			now   []byte
		)

		err := r.world.db.QueryRow(ctx, `SELECT id, state, coalesce(edited, '') FROM failed_messages WHERE message_id = $1`, m.ID).Scan(&id, &state, &now)

		switch {
		case err != nil: // not there yet, or Postgres is down
		case state == "resolved":
			r.count("failed messages edited and requeued")

			return nil
		case state == "waiting": // it will be applied
		case !bytes.Equal(now, edited):
			_, _ = r.world.request(ctx, http.MethodPatch, fmt.Sprintf("/failed/%d", id), map[string]any{"payload": map[string]string{"text": string(edited)}, "why": "proof"})
		default:
			_, _ = r.world.request(ctx, http.MethodPost, fmt.Sprintf("/failed/%d/requeue", id), why{Why: "proof"})
		}

		pause(ctx, 300*time.Millisecond)
	}

	return ctx.Err()
}
