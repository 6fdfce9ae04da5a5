package consumer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// EraseFunc removes a person's data from the tables of a domain and returns the
// number of rows changed. seen is true if a message about the person was found. If a
// domain stores people and has none with this ID, it returns a NotFound error unless
// seen is true.
type EraseFunc func(ctx context.Context, tx pgx.Tx, subject string, seen bool) (rows int64, err error)

// MarksFunc returns the strings by which a person can be recognised, such as former and
// present names and e-mail addresses.
type MarksFunc func(ctx context.Context, db postgres.Querier, subject string) ([]string, error)

type eraser struct {
	name  string
	erase EraseFunc
}

// OnErase registers a function that Erase calls. Functions run in order of
// registration, which is also their lock order.
func (r *Router) OnErase(name string, erase EraseFunc) {
	r.refuseAfterRun("erasure of " + name)
	r.erasers = append(r.erasers, eraser{name: name, erase: erase})
}

// OnSearch registers a function whose strings Erase looks for in all tables of the schema.
func (r *Router) OnSearch(marks MarksFunc) {
	r.refuseAfterRun("search for a person")
	r.marks = append(r.marks, marks)
}

// Erasing says whose data to erase.
type Erasing struct {
	Subject string
	// Search lists further strings to look for, such as a phone number.
	Search []string
	// Failed and Actions are the IDs of further failed messages and operator actions to
	// erase: those that an operator has found to be about the person.
	Failed, Actions []int64
	// DryRun changes nothing.
	DryRun bool
	By     activity.Actor
}

// Erasure reports what Erase removed.
type Erasure struct {
	Subject string `json:"erased"`
	DryRun  bool   `json:"dry_run,omitempty"`
	// Rows counts the changed rows by the domain's registered name.
	Rows map[string]int64 `json:"rows"`
	// Withdrawn counts messages that will no longer be published or retried.
	Withdrawn int64 `json:"withdrawn"`
	// Emptied counts failed messages whose content was removed.
	Emptied int64 `json:"emptied"`
	// Actions counts operator actions that lost a payload or text.
	Actions int64 `json:"actions"`
	// Mentions are the rows that still contain text by which the person can be
	// recognised. Somebody must review them.
	Mentions []postgres.Found `json:"mentions" nullable:"false"`
	// More is true if there are more mentions than are listed.
	More bool `json:"more,omitempty"`
	// Skipped are the tables that were not searched because the role cannot read them.
	Skipped []string `json:"skipped,omitempty"`
	// PersonalID is true if the ID itself, which is kept, contains such text.
	PersonalID bool `json:"personal_id,omitempty"`

	// unknown is true if nothing about the person was found.
	unknown bool
}

// maxMentions is the maximum number of mentions in one table.
const maxMentions = 1000

// minText is the minimum length of a string to look for: a shorter one would be
// found everywhere.
const minText = 3

// errDryRun rolls back a dry run.
var errDryRun = errors.New("dry run")

// Erase removes a person's data from the tables of all domains and from the stored
// messages whose payload types implement event.Personal. It also looks in all tables
// of the schema for strings by which the person can be recognised. It can be repeated to
// remove data that arrived later, such as a late message that failed because the person
// had been erased. It does not affect messages that have already been published.
func (r *Router) Erase(ctx context.Context, e Erasing) (done Erasure, err error) {
	if err := e.check(); err != nil {
		return done, err
	}

	texts, err := r.textsOf(ctx, e)
	if err != nil {
		return done, err
	}

	search := postgres.Search{Texts: texts, Limit: maxMentions}
	if len(e.Subject) >= minText {
		search.ID = e.Subject
	}

	// The search reads everything. It runs before the transaction, because the strings are
	// still known at that point and the transaction's locks would stop consumers. After
	// that, only the rows that it found are searched again.
	found, err := postgres.Find(ctx, r.pool, search)
	if err != nil {
		return done, err
	}

	search.Within = append([]postgres.Found{}, found.Rows...)
	done, err = r.eraseInTx(ctx, e, texts, search)

	switch {
	case done.unknown && len(found.Rows) > 0: // nothing is stored about the person, but they are mentioned
		done.Mentions = found.Rows
	case err != nil:
		return done, fmt.Errorf("erasing %s: %w", e.Subject, err)
	}

	done.DryRun, done.PersonalID = e.DryRun, strings.Contains(e.Subject, "@") || mentioned(e.Subject, texts)
	done.Mentions = append([]postgres.Found{}, done.Mentions...)
	done.More, done.Skipped = found.More, found.Skipped

	return done, nil
}

// eraseInTx erases the data, and repeats the search in the rows found before.
func (r *Router) eraseInTx(ctx context.Context, e Erasing, texts []string, search postgres.Search) (done Erasure, err error) {
	err = postgres.InTx(ctx, r.pool, func(tx pgx.Tx) (err error) {
		if done, err = r.erase(ctx, tx, e, texts); err != nil {
			return err
		}

		left, err := postgres.Find(ctx, tx, search)
		done.Mentions = left.Rows

		if err == nil && e.DryRun {
			err = errDryRun
		}

		return err
	})
	if errors.Is(err, errDryRun) {
		err = nil
	}

	return done, err
}

func (e Erasing) check() error {
	for i, text := range e.Search {
		if event.Text(text) != text || len(strings.TrimSpace(text)) < minText {
			return event.Errorf(event.Invalid, "search[%d]: expected printable text of at least %d bytes", i, minText)
		}
	}

	switch {
	case e.Subject == "" || event.Text(e.Subject) != e.Subject:
		return event.Missing("person", event.Text(e.Subject))
	case e.DryRun:
		return nil
	case e.By.Who == "":
		return activity.ErrNoActor
	case strings.TrimSpace(e.By.Why) == "":
		return event.Errorf(event.Invalid, "why: is missing, expected a reason for the erasure, such as a ticket number")
	default:
		return nil
	}
}

// textsOf returns the strings by which the person can be recognised. It refuses a reason
// that contains one, because the reason is kept.
func (r *Router) textsOf(ctx context.Context, e Erasing) (texts []string, err error) {
	add := func(marks ...string) {
		for _, m := range marks {
			if m = strings.TrimSpace(m); len(m) >= minText && event.Text(m) == m && !slices.Contains(texts, m) {
				texts = append(texts, m)
			}
		}
	}

	add(e.Search...)

	for _, marks := range r.marks {
		found, err := marks(ctx, r.pool, e.Subject)
		if err != nil {
			return nil, err
		}

		add(found...)
	}

	topics, about := r.about(e.Subject, add)

	_, err = failed.Concerned(ctx, r.pool, failed.Erasing{Topics: topics, About: about})
	if err == nil {
		_, err = outbox.Matching(ctx, r.pool, topics, about)
	}

	if err == nil && mentioned(e.By.Why, texts) {
		err = event.Errorf(event.Invalid, "why: contains the person's name or address, expected a reason that may be kept, such as a ticket number")
	}

	return texts, err
}

// mentioned reports whether text contains one of texts as a whole word.
func mentioned(text string, texts []string) bool {
	return slices.ContainsFunc(texts, func(mark string) bool {
		return regexp.MustCompile(`(?i)(?:^|[^\pL\pN_])` + regexp.QuoteMeta(mark) + `(?:$|[^\pL\pN_])`).MatchString(text)
	})
}

// erase removes the data that is certainly about the person.
func (r *Router) erase(ctx context.Context, tx pgx.Tx, e Erasing, texts []string) (done Erasure, err error) {
	done = Erasure{Subject: e.Subject, Rows: map[string]int64{}}
	topics, about := r.about(e.Subject, func(...string) {})

	// Handlers lock waiting keys before domain rows, so erase does too.
	messages, err := failed.Erase(ctx, tx, failed.Erasing{
		Subject: e.Subject, Topics: topics, About: about, Also: e.Failed,
		Mentions: func(key string) bool { return mentioned(key, texts) },
	})
	if err != nil {
		return done, err
	}

	unpublished, err := outbox.Withdraw(ctx, tx, topics, about)
	if err != nil {
		return done, err
	}

	missing, err := r.eraseDomains(ctx, tx, &done, messages.About > 0 || unpublished > 0)
	if err != nil {
		return done, err
	}

	// A handler that held a lock may have added messages.
	more, err := outbox.Withdraw(ctx, tx, topics, about)
	if err != nil {
		return done, err
	}

	edits, err := activity.EraseWhere(ctx, tx, func(payload []byte) bool { return about("", payload) })
	if err != nil {
		return done, err
	}

	named, err := activity.Erase(ctx, tx, e.Actions, e.Subject)
	if err != nil {
		return done, err
	}

	done.Withdrawn, done.Emptied = messages.Withdrawn+unpublished+more, messages.Emptied
	done.Actions = messages.Actions + edits + named

	if missing != nil && done.empty() {
		done.unknown = true

		return done, missing
	}

	if e.DryRun {
		return done, nil
	}

	return done, activity.Record(ctx, tx, e.By, activity.Action{Action: activity.Erased, Subject: e.Subject})
}

// eraseDomains erases the person in the tables of all domains and counts the rows. If a
// domain does not know the person, missing is its error.
func (r *Router) eraseDomains(ctx context.Context, tx pgx.Tx, done *Erasure, inMessages bool) (missing, err error) {
	for _, domain := range r.erasers {
		done.Rows[domain.name], err = domain.erase(ctx, tx, done.Subject, inMessages)

		switch {
		case event.KindOf(err) == event.NotFound:
			missing = err
		case err != nil:
			return nil, err
		}
	}

	return missing, nil
}

// empty reports whether nothing was removed.
func (d Erasure) empty() bool {
	total := d.Withdrawn + d.Emptied + d.Actions
	for _, n := range d.Rows {
		total += n
	}

	return total == 0
}

// Personal reports whether messages on a topic may have personal data or free text. They
// may if a handler or a producer declares so, or if the topic is unknown.
func (r *Router) Personal(topic string) bool {
	known := false

	for payload := range r.payloads() {
		if payload.Topic() != topic {
			continue
		}

		known = true

		switch payload.(type) {
		case event.Personal, event.FreeText:
			return true
		}
	}

	return !known
}

// payloads returns zero values of all payloads that handlers take or publish.
func (r *Router) payloads() iter.Seq[event.Payload] {
	return func(yield func(event.Payload) bool) {
		for _, route := range r.routes {
			for _, payload := range append([]event.Payload{route.Payload}, route.Publishes...) {
				if !yield(payload) {
					return
				}
			}
		}
	}
}

// about returns the topics with personal data, and a function that reports whether a
// message on them is about a person. The function passes what it can read about the
// person to marks.
func (r *Router) about(subject string, marks func(...string)) (topics []string, about func(key string, payload []byte) bool) {
	var types []event.Personal

	for payload := range r.payloads() {
		if p, ok := payload.(event.Personal); ok && !slices.Contains(topics, p.Topic()) {
			types, topics = append(types, p), append(topics, p.Topic())
		}
	}

	return topics, func(key string, payload []byte) bool {
		found := key == subject

		// A malformed message may resemble the payload of another topic.
		for _, p := range types {
			read := event.ReadPersonal(p, payload)
			if read.Subject() == subject || key == subject && read.Subject() == "" {
				found = true

				marks(read.Marks()...)
			}
		}

		return found
	}
}
