package simulate

// person is what became of one user's requests: 44 bytes besides the name.
type person struct {
	requests, denied uint64
	first, last      int64 // denial
	denials          int32 // 1 + the index of the newest in engine.denials; 0 for none
}

// denial counts those of one user by one limit. They are linked, as most users have
// none and others few.
type denial struct {
	count uint64
	limit uint32
	next  int32
}

// user is the number of a user.
func (e *engine) user(id []byte) uint32 {
	number, isNew := e.users.number(id)
	if isNew {
		e.persons = append(e.persons, person{})
	}
	return number
}

func (p *person) deny(at int64) {
	if p.denied == 0 {
		p.first = at
	}
	p.denied++
	p.last = at
}

// blame counts a denial by a limit.
func (e *engine) blame(p *person, limit uint32) {
	for i := p.denials; i != 0; i = e.denials[i-1].next {
		if d := &e.denials[i-1]; d.limit == limit {
			d.count++
			return
		}
	}
	e.denials = append(e.denials, denial{count: 1, limit: limit, next: p.denials})
	p.denials = int32(len(e.denials))
}
