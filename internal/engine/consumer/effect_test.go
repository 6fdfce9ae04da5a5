package consumer_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	watermill "github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/broker/window"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/line"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// journal is a handler of notes with an effect, which records what it does.
type journal struct {
	mu        sync.Mutex
	performed []string
	batches   [][]string
}

func (j *journal) texts() string {
	j.mu.Lock()
	defer j.mu.Unlock()

	return strings.Join(j.performed, " ")
}

// recorded returns the texts of all batches.
func (j *journal) recorded() []string {
	j.mu.Lock()
	defer j.mu.Unlock()

	return slices.Concat(j.batches...)
}

// counting makes an effect that admits all events count them.
func counting(effect consumer.Effect[note, string]) (counted consumer.Effect[note, string], admitted *atomic.Int64) {
	admitted = &atomic.Int64{}
	effect.Admit = func(_ context.Context, _ postgres.Querier, events []event.Event[note]) ([]error, error) {
		admitted.Add(int64(len(events)))

		return make([]error, len(events)), nil
	}

	return effect, admitted
}

// independent returns an independent effect that calls perform and record first, if they
// are not nil.
func (j *journal) independent(perform func(text string) error, record func(texts []string)) consumer.Effect[note, string] {
	return consumer.Effect[note, string]{
		Independent: true,
		Perform: func(_ context.Context, e event.Event[note]) (string, error) {
			j.mu.Lock()
			j.performed = append(j.performed, e.Payload.Text)
			j.mu.Unlock()

			if perform == nil {
				return "", nil
			}

			return "", perform(e.Payload.Text)
		},
		Record: func(_ context.Context, _ pgx.Tx, done []event.Effected[note, string]) ([]event.Outgoing, error) {
			texts := postgres.Column(done, func(d event.Effected[note, string]) string { return d.Payload.Text })

			if record != nil {
				record(texts)
			}

			j.mu.Lock()
			defer j.mu.Unlock()

			j.batches = append(j.batches, texts)

			return nil, nil
		},
	}
}

// startEffect starts a router with an effect, and delivers messages of one key with the
// texts 1 to n. settled has the number of the last one that is finished, as are all
// before it.
func startEffect(t *testing.T, n int, effect consumer.Effect[note, string]) (h *handled, settled *atomic.Int64) {
	t.Helper()

	messages := make([]event.Message, n)
	for i := range messages {
		messages[i] = message("a", strconv.Itoa(i+1))
	}

	h, _, settled = startEffectWith(t, t.Context(), messages, effect)

	return h, settled
}

// startEffectWith delivers these messages, until session ends.
func startEffectWith(t *testing.T, session context.Context, messages []event.Message, effect consumer.Effect[note, string], //nolint:revive // t is first
) (h *handled, w *window.Window, settled *atomic.Int64) {
	t.Helper()

	h, settled = &handled{}, &atomic.Int64{}

	h.handingTo(t, newPool(t), func(router *consumer.Router) { consumer.OnEffect(router, "writer", effect) }, parking(1000))
	h.run(t)

	w = window.New(line.Telling(session), window.NewBudget(100, window.MaxBytes), h.out, window.Acks{UpTo: settled.Store})

	for i, m := range messages {
		w.Add(watermill.NewMessage(m.ID.String(), m.Payload), "a", int64(i+1))
	}

	return h, w, settled
}

func numbers(from, to int) (texts []string) {
	for i := from; i <= to; i++ {
		texts = append(texts, strconv.Itoa(i))
	}

	return texts
}

// TestIndependentEffectsOfAKeyAreRecordedTogether: while the first one is being recorded,
// the others are performed, in order.
func TestIndependentEffectsOfAKeyAreRecordedTogether(t *testing.T) {
	t.Parallel()

	const n = 20

	var (
		did              journal
		entered, proceed = make(chan struct{}), make(chan struct{})
	)

	_, settled := startEffect(t, n, did.independent(nil, func(texts []string) {
		if texts[0] == "1" {
			close(entered)
			<-proceed
		}
	}))

	<-entered
	pgtest.Eventually(t, "all effects are performed", func() bool { return did.texts() == strings.Join(numbers(1, n), " ") })
	close(proceed)
	pgtest.Eventually(t, "all are settled", func() bool { return settled.Load() == n })

	if got := did.recorded(); !slices.Equal(got, numbers(1, n)) || len(did.batches) > n/2 {
		t.Errorf("recorded %v", did.batches)
	}
}

// TestNoIndependentEffectOvertakesOneThatFails: those behind it wait for its next attempt.
func TestNoIndependentEffectOvertakesOneThatFails(t *testing.T) {
	t.Parallel()

	var (
		did  journal
		heal atomic.Bool
	)

	h, settled := startEffect(t, 5, did.independent(func(text string) error {
		if text == "2" && !heal.Load() {
			return event.Later(10*time.Millisecond, errors.New("not yet"))
		}

		return nil
	}, nil))

	pgtest.Eventually(t, "the others are stored behind it", func() bool {
		return settled.Load() == 5 && pgtest.Value[int](t, h.pool, `SELECT count(*)::int FROM failed_messages`) == 4
	})

	if got := did.texts(); strings.ContainsAny(got, "345") {
		t.Errorf("performed %s", got)
	}

	heal.Store(true)
	pgtest.Eventually(t, "all are recorded", func() bool { return slices.Equal(did.recorded(), numbers(1, 5)) })

	if got := did.texts(); !strings.HasSuffix(got, "2 3 4 5") {
		t.Errorf("performed %s", got)
	}
}

// TestAnEventThatWaitedLongForTheOneAheadIsAdmittedAgain: what Admit said is out of date.
func TestAnEventThatWaitedLongForTheOneAheadIsAdmittedAgain(t *testing.T) {
	t.Parallel()

	const slow = 1200 * time.Millisecond // longer than an answer of Admit holds

	var (
		did    journal
		erased atomic.Bool
	)

	effect := did.independent(func(text string) error {
		if text == "1" {
			erased.Store(true)
			<-time.After(slow)
		}

		return nil
	}, nil)
	effect.Admit = func(_ context.Context, _ postgres.Querier, events []event.Event[note]) ([]error, error) {
		answers := make([]error, len(events))

		if erased.Load() {
			for i := range answers {
				answers[i] = event.ErrSkip
			}
		}

		return answers, nil
	}

	_, settled := startEffect(t, 2, effect)

	pgtest.Eventually(t, "both are settled", func() bool { return settled.Load() == 2 })

	if got := did.texts(); got != "1" {
		t.Errorf("performed %s", got)
	}
}

// TestARepeatRightBehindAMessageIsNotPerformed: the first one is performed, but not
// recorded yet.
func TestARepeatRightBehindAMessageIsNotPerformed(t *testing.T) {
	t.Parallel()

	var (
		did              journal
		entered, proceed = make(chan struct{}), make(chan struct{})
		repeated, last   = message("a", "1"), message("a", "2")
		messages         = []event.Message{repeated, repeated, last}
	)

	effect, admitted := counting(did.independent(nil, func(texts []string) {
		if texts[0] == "1" {
			close(entered)
			<-proceed
		}
	}))

	_, _, settled := startEffectWith(t, t.Context(), messages, effect)

	<-entered
	pgtest.Eventually(t, "all are admitted", func() bool { return admitted.Load() >= int64(len(messages)) })
	close(proceed)
	pgtest.Eventually(t, "all are settled", func() bool { return settled.Load() == int64(len(messages)) })

	if got := did.texts(); got != "1 2" {
		t.Errorf("performed %s", got)
	}
}

// TestNothingIsPerformedOnceTheBrokerTakesTheMessagesBack: what was performed is recorded,
// and the others are left to whoever gets them next.
func TestNothingIsPerformedOnceTheBrokerTakesTheMessagesBack(t *testing.T) {
	t.Parallel()

	var (
		did              journal
		entered, proceed = make(chan struct{}), make(chan struct{})
		messages         = []event.Message{message("a", "1"), message("a", "2"), message("a", "3")}
	)

	effect, admitted := counting(did.independent(func(text string) error {
		if text == "1" {
			close(entered)
			<-proceed
		}

		return nil
	}, nil))

	t.Cleanup(func() { // after the router has stopped
		if got := did.recorded(); !slices.Equal(got, []string{"1"}) || did.texts() != "1" {
			t.Errorf("performed %s, recorded %v", did.texts(), got)
		}
	})

	session, end := context.WithCancel(t.Context())
	_, w, _ := startEffectWith(t, session, messages, effect)

	<-entered
	pgtest.Eventually(t, "all are admitted", func() bool { return admitted.Load() == int64(len(messages)) })
	end()
	w.Wait()
	close(proceed)
	pgtest.Eventually(t, "the first is recorded", func() bool { return len(did.recorded()) > 0 })
}
