package bundle

import "slices"

// queue is a first-in first-out ring that keeps its room.
type queue[T any] struct {
	ring []T
	head int
	n    int
}

func (q *queue[T]) len() int { return q.n }

func (q *queue[T]) push(v T) {
	if q.n == len(q.ring) {
		bigger := make([]T, max(8, 2*len(q.ring)))
		for i := range q.n {
			bigger[i] = *q.at(i)
		}
		q.ring, q.head = bigger, 0
	}
	q.ring[(q.head+q.n)%len(q.ring)] = v
	q.n++
}

// at returns the element i places behind the first.
func (q *queue[T]) at(i int) *T { return &q.ring[(q.head+i)%len(q.ring)] }

func (q *queue[T]) pop() T {
	var zero T
	v := q.ring[q.head]
	q.ring[q.head] = zero
	q.head = (q.head + 1) % len(q.ring)
	q.n--
	return v
}

// sort puts the elements in order.
func (q *queue[T]) sort(by func(a, b T) int) {
	all := make([]T, 0, q.n)
	for q.n > 0 {
		all = append(all, q.pop())
	}
	slices.SortFunc(all, by)
	for _, v := range all {
		q.push(v)
	}
}
