package consumer

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestAConsumerTakesItsMessagesWhenItIsItsTurn: another consumer has the only turn.
func TestAConsumerTakesItsMessagesWhenItIsItsTurn(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		var (
			shared  = make(turns, 1)
			end     = shared.take()
			batches [][]string
		)

		g := newGroup(10, 1, shared, func(batch []item) []item {
			var keys []string
			for _, i := range batch {
				keys = append(keys, i.k)
			}

			batches = append(batches, keys)

			return nil
		})

		g.add(item{k: "a"})
		synctest.Wait()
		g.add(item{k: "b"})
		synctest.Wait()

		if len(batches) > 0 {
			t.Errorf("%v ran before its turn", batches)
		}

		end()
		synctest.Wait()

		if len(batches) != 1 || !slices.Equal(batches[0], []string{"a", "b"}) {
			t.Errorf("got batches %v, expected one of a and b", batches)
		}

		if len(shared) > 0 {
			t.Error("a turn has not ended")
		}
	})
}

// TestABatchThatHangsHoldsUpNoOtherConsumer for longer than its patience.
func TestABatchThatHangsHoldsUpNoOtherConsumer(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		shared := make(turns, 1)
		hang := make(chan struct{})

		hangs := newGroup(10, 1, shared, func([]item) []item {
			<-hang

			return nil
		})
		hangs.add(item{k: "a"})
		synctest.Wait()

		var ran []time.Duration

		start := time.Now()
		other := newGroup(10, 1, shared, func([]item) []item {
			ran = append(ran, time.Since(start))

			return nil
		})

		other.add(item{k: "b"})
		time.Sleep(time.Second)
		synctest.Wait()

		if !slices.Equal(ran, []time.Duration{patience}) {
			t.Errorf("ran after %v, expected %v", ran, patience)
		}

		close(hang)
	})
}
