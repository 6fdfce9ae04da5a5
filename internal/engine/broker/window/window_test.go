package window_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"pgregory.net/rapid"

	"github.com/millracehq/millrace/internal/engine/broker/window"
	"github.com/millracehq/millrace/internal/engine/line"
)

func numbered(n int64) *message.Message {
	return message.NewMessage(strconv.FormatInt(n, 10), []byte("payload"))
}

func ack(msg *message.Message) {
	msg.Ack()
	tell(msg)
}

func nack(msg *message.Message) {
	msg.Nack()
	tell(msg)
}

// tell tells the window of an answer, if the consumer has promised that.
func tell(msg *message.Message) {
	if line.Tells(msg.Context()) {
		line.Of(msg.Context()).Answered()
	}
}

// session returns a context for a window whose consumer tells of its answers, or does not.
func session(t *testing.T, tells bool) (context.Context, context.CancelFunc) {
	t.Helper()

	if tells {
		return context.WithCancel(line.Telling(t.Context()))
	}

	return context.WithCancel(t.Context())
}

// broker records what a window reports.
type broker struct {
	mu sync.Mutex
	// upTo is the last position reported together with all before it.
	upTo int64
	ones []int64
}

func (b *broker) reported() (upTo int64, ones []int64) {
	b.mu.Lock()
	defer b.mu.Unlock()

	return b.upTo, slices.Clone(b.ones)
}

func (b *broker) acks(single bool) window.Acks {
	acks := window.Acks{UpTo: func(position int64) {
		b.mu.Lock()
		defer b.mu.Unlock()

		b.upTo = position
	}}

	if single {
		acks.One = func(position int64) {
			b.mu.Lock()
			defer b.mu.Unlock()

			b.ones = append(b.ones, position)
		}
	}

	return acks
}

// consumer answers messages after a while, and refuses some at first.
type consumer struct {
	*broker

	takes, refusals []int

	mu sync.Mutex
	// acked lists the acknowledged positions in order. now counts the messages in hand;
	// top is the highest count seen.
	acked    []int64
	now, top int
}

// answer answers a message, and reports whether it was acknowledged.
func (c *consumer) answer(t *testing.T, msg *message.Message) bool {
	t.Helper()

	position, err := strconv.ParseInt(msg.UUID, 10, 64)
	if err != nil {
		t.Fatal(err)
	}

	c.mu.Lock()
	defer c.mu.Unlock()

	c.now++
	c.top = max(c.top, c.now)
	c.refusals[position]--
	refused := c.refusals[position] >= 0

	go func() {
		time.Sleep(time.Duration(c.takes[position]) * time.Millisecond)
		c.mu.Lock()
		defer c.mu.Unlock()

		c.now--

		if refused {
			nack(msg)

			return
		}

		if upTo, _ := c.reported(); upTo >= position {
			t.Errorf("position %d was reported while %d was in hand", upTo, position)
		}

		c.acked = append(c.acked, position)
		ack(msg)
	}()

	return !refused
}

// TestOrderAndPositionsHoldWhateverIsRefused delivers random messages to a consumer that
// takes a random time and refuses at random.
func TestOrderAndPositionsHoldWhateverIsRefused(t *testing.T) {
	t.Parallel()

	rapid.Check(t, func(rt *rapid.T) {
		keys := rapid.SliceOfN(rapid.SampledFrom([]string{"", "a", "b", "c"}), 1, 40).Draw(rt, "keys")
		takes := rapid.SliceOfN(rapid.IntRange(0, 50), len(keys), len(keys)).Draw(rt, "takes ms")
		refusals := rapid.SliceOfN(rapid.IntRange(0, 2), len(keys), len(keys)).Draw(rt, "refusals")
		inHand := rapid.IntRange(1, 10).Draw(rt, "in hand")
		tells := rapid.Bool().Draw(rt, "tells")

		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := session(t, tells)
			out := make(chan *message.Message)
			c := &consumer{broker: &broker{upTo: -1}, takes: takes, refusals: refusals}
			hand := window.New(ctx, window.NewBudget(inHand, 1<<20), out, c.acks(false))

			go func() {
				for n, key := range keys {
					hand.Add(numbered(int64(n)), key, int64(n))
				}
			}()

			for acked := 0; acked < len(keys); {
				if c.answer(t, <-out) {
					acked++
				}
			}

			time.Sleep(time.Second) // on the bubble's clock
			cancel()
			hand.Wait()

			if upTo, _ := c.reported(); upTo != int64(len(keys)-1) {
				t.Errorf("reported up to %d of %d", upTo, len(keys)-1)
			}

			for _, key := range []string{"a", "b", "c"} {
				of := slices.DeleteFunc(slices.Clone(c.acked), func(position int64) bool { return keys[position] != key })
				if !slices.IsSorted(of) {
					t.Errorf("key %s: acknowledged in order %v", key, of)
				}
			}

			if c.top > inHand {
				t.Errorf("%d messages were in hand, expected at most %d", c.top, inHand)
			}
		})
	})
}

// take receives n messages.
func take(t *testing.T, out <-chan *message.Message, n int) map[string]*message.Message {
	t.Helper()

	taken := map[string]*message.Message{}

	for range n {
		select {
		case msg := <-out:
			taken[msg.UUID] = msg
		case <-time.After(time.Minute):
			t.Fatalf("%d messages arrived, expected %d", len(taken), n)
		}
	}

	return taken
}

func TestAMessageInHandHoldsItsKeyOnly(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		out := make(chan *message.Message)
		b := &broker{upTo: -1}
		hand := window.New(t.Context(), window.NewBudget(100, 1<<20), out, b.acks(false))

		for n, key := range []string{"a", "a", "b", "", ""} {
			hand.Add(numbered(int64(n)), key, int64(n))
		}

		first := take(t, out, 4)
		for _, n := range []string{"2", "3", "4"} {
			ack(first[n])
		}

		synctest.Wait()

		if upTo, _ := b.reported(); upTo != -1 {
			t.Errorf("position %d was reported while 0 was in hand", upTo)
		}

		ack(first["0"])
		ack(take(t, out, 1)["1"])
		synctest.Wait()

		if upTo, _ := b.reported(); upTo != 4 {
			t.Errorf("reported up to %d, expected 4", upTo)
		}
	})
}

func TestBytesInHandAreBounded(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		out := make(chan *message.Message)
		hand := window.New(t.Context(), window.NewBudget(100, 20), out, (&broker{}).acks(false))
		added := make(chan int, 3)

		go func() {
			for n, size := range []int{15, 1000, 15} { // the second is larger than the whole budget
				hand.Add(message.NewMessage(fmt.Sprint(n), make([]byte, size)), fmt.Sprint(n), int64(n))
				added <- n
			}
		}()

		for n := range 3 {
			msg := take(t, out, 1)[fmt.Sprint(n)]

			synctest.Wait()

			if len(added) != 1 {
				t.Errorf("message %d: %d more were taken alongside it", n, len(added)-1)
			}

			<-added
			ack(msg)
		}
	})
}

// A single message in hand does not keep the others from being acknowledged. If it did,
// they would use up what the broker hands out.
func TestASingleMessageIsReportedWhereTheBrokerRecordsIt(t *testing.T) {
	t.Parallel()

	for budget, single := range map[int]int{20: 79 * 5, 300: 5 * 75, 2000: 3 * 128} {
		t.Run(fmt.Sprint(budget), func(t *testing.T) {
			t.Parallel()

			synctest.Test(t, func(t *testing.T) {
				const messages = 400

				out := make(chan *message.Message)
				b := &broker{upTo: -1}
				hand := window.New(t.Context(), window.NewBudget(budget, 1<<20), out, b.acks(true))

				go func() {
					for n := range int64(messages) {
						hand.Add(numbered(n), "", n)
					}
				}()

				var held *message.Message

				for acked := 0; acked < messages-1; {
					if msg := <-out; msg.UUID == "0" {
						held = msg
					} else {
						ack(msg)
						synctest.Wait()

						acked++
					}
				}

				if upTo, ones := b.reported(); upTo != -1 || len(ones) != single {
					t.Errorf("reported up to %d, and %d by themselves, expected %d", upTo, len(ones), single)
				}

				ack(held)
				synctest.Wait()

				last := int64(messages - 1) // the last that was not reported individually

				upTo, ones := b.reported()
				for slices.Contains(ones, last) {
					last--
				}

				if upTo != last {
					t.Errorf("reported up to %d, expected %d", upTo, last)
				}
			})
		})
	}
}

func TestTheEndOfTheSessionLeavesWhatIsInHand(t *testing.T) {
	t.Parallel()

	for _, tells := range []bool{false, true} {
		t.Run(fmt.Sprintf("tells %t", tells), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { testTheEndOfTheSession(t, tells) })
		})
	}
}

func testTheEndOfTheSession(t *testing.T, tells bool) {
	t.Helper()

	ctx, cancel := session(t, tells)
	out := make(chan *message.Message)
	b := &broker{upTo: -1}
	hand := window.New(ctx, window.NewBudget(100, 1<<20), out, b.acks(false))

	for n, key := range []string{"a", "c", "c", "b", "a"} {
		hand.Add(numbered(int64(n)), key, int64(n))
	}

	taken := take(t, out, 3)
	cancel()
	ack(taken["0"])  // in time; the message behind it is not delivered
	nack(taken["1"]) // stays with the broker

	began := time.Now()

	hand.Wait() // 3 gets no answer

	if waited := time.Since(began); waited < time.Second || waited > 10*time.Second {
		t.Errorf("waited %s", waited)
	}

	if upTo, _ := b.reported(); upTo != 0 {
		t.Errorf("reported up to %d, expected 0", upTo)
	}

	if hand.Add(numbered(5), "d", 5) {
		t.Error("a message was taken after the end")
	}

	select {
	case msg := <-out:
		t.Errorf("message %s was delivered after the end", msg.UUID)
	default:
	}
}

// joiner takes messages before it has answered those ahead of them, as a consumer that
// applies several messages of a key together does.
type joiner struct {
	*broker

	t        *testing.T
	keys     []string
	takes    []int
	refusals []int

	mu sync.Mutex
	// lines has, for each line, a channel that closes once its last message is
	// answered.
	lines map[*line.Line]chan struct{}
	acked map[string][]int
	// now counts the unanswered messages of each line; most is the highest count seen.
	now  map[*line.Line]int
	most int
}

// take joins the line of a message, and answers it after those ahead of it.
func (j *joiner) take(msg *message.Message) {
	n, err := strconv.Atoi(msg.UUID)
	if err != nil {
		j.t.Fatal(err)
	}

	l := line.Of(msg.Context())
	answered := make(chan struct{})

	j.mu.Lock()
	ahead := j.lines[l]
	j.lines[l] = answered
	j.now[l]++
	j.most = max(j.most, j.now[l])
	j.mu.Unlock()

	l.Join()

	go func() {
		defer close(answered)

		time.Sleep(time.Duration(j.takes[n]) * time.Millisecond)

		if ahead != nil {
			<-ahead
		}

		j.mu.Lock()
		defer j.mu.Unlock()

		j.now[l]--
		j.refusals[n]--

		if l.Broken() || j.refusals[n] >= 0 {
			l.Break()
			nack(msg)

			return
		}

		if upTo, _ := j.reported(); upTo >= int64(n) {
			j.t.Errorf("position %d was reported while %d was in hand", upTo, n)
		}

		j.acked[j.keys[n]] = append(j.acked[j.keys[n]], n)
		ack(msg)
	}()
}

// TestALineIsDeliveredAgainFromTheFirstMessageThatWasRefused delivers to a consumer that
// takes several messages of a key together, and refuses some.
func TestALineIsDeliveredAgainFromTheFirstMessageThatWasRefused(t *testing.T) {
	t.Parallel()

	rapid.Check(t, func(rt *rapid.T) {
		keys := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 40).Draw(rt, "keys")
		takes := rapid.SliceOfN(rapid.IntRange(0, 50), len(keys), len(keys)).Draw(rt, "takes ms")
		refusals := rapid.SliceOfN(rapid.SampledFrom([]int{0, 0, 0, 1, 2}), len(keys), len(keys)).Draw(rt, "refusals")
		inHand := rapid.IntRange(1, 10).Draw(rt, "in hand")
		tells := rapid.Bool().Draw(rt, "tells")

		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := session(t, tells)
			out := make(chan *message.Message)
			j := &joiner{
				broker: &broker{upTo: -1}, t: t, keys: keys, takes: takes, refusals: refusals,
				lines: map[*line.Line]chan struct{}{}, acked: map[string][]int{}, now: map[*line.Line]int{},
			}
			hand := window.New(ctx, window.NewBudget(inHand, 1<<20), out, j.acks(false))

			go func() {
				for n, key := range keys {
					hand.Add(numbered(int64(n)), key, int64(n))
				}
			}()

			go func() {
				for {
					select {
					case msg := <-out:
						j.take(msg)
					case <-ctx.Done():
						return
					}
				}
			}()

			time.Sleep(time.Hour) // on the bubble's clock
			cancel()
			hand.Wait()

			if upTo, _ := j.reported(); upTo != int64(len(keys)-1) {
				t.Errorf("reported up to %d of %d", upTo, len(keys)-1)
			}

			for key, numbers := range j.acked {
				if !slices.IsSorted(numbers) {
					t.Errorf("key %s: acknowledged in order %v", key, numbers)
				}
			}

			if j.most > inHand {
				t.Errorf("%d messages of a line were in hand, expected at most %d", j.most, inHand)
			}
		})
	})
}

func TestALineIsDeliveredWithoutWaitingForAnswers(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		out := make(chan *message.Message)
		hand := window.New(t.Context(), window.NewBudget(100, 1<<20), out, (&broker{}).acks(false))

		for n := range int64(10) {
			hand.Add(numbered(n), "a", n)
		}

		var taken []*message.Message

		for n := range 10 {
			msg, is := take(t, out, 1)[strconv.Itoa(n)]
			if !is {
				t.Fatalf("another message was delivered before %d", n)
			}

			taken = append(taken, msg)

			synctest.Wait()

			select {
			case next := <-out:
				t.Errorf("%s was delivered before %d has joined", next.UUID, n)
			default:
			}

			line.Of(msg.Context()).Join()
		}

		for _, msg := range taken {
			ack(msg)
		}
	})
}

// TestMessagesThatWaitHoldTheirPlaceInTheWindow shows a known limit: a window that is full
// of messages that wait takes no others, whatever their keys.
func TestMessagesThatWaitHoldTheirPlaceInTheWindow(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		out := make(chan *message.Message)
		hand := window.New(t.Context(), window.NewBudget(2, 1<<20), out, (&broker{}).acks(false))
		added := make(chan int64, 3)

		go func() {
			for n := range int64(3) {
				hand.Add(numbered(n), strconv.FormatInt(n, 10), n)
				added <- n
			}
		}()

		waiting := take(t, out, 2)

		synctest.Wait()

		if len(added) != 2 {
			t.Fatalf("%d messages were taken, expected two", len(added))
		}

		ack(waiting["1"])
		ack(take(t, out, 1)["2"])
		ack(waiting["0"])
	})
}
